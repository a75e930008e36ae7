"""Checkpoints from the model hub, pinned to a commit."""

from __future__ import annotations

import re
from pathlib import Path

from configs.errors import BlipEdgeError, InputError, ToolError
from export.files import CONFIG, PROCESSOR_FILES

_COMMIT = re.compile(r"[0-9a-f]{40}")
_WANTED = [CONFIG, *PROCESSOR_FILES, "*.safetensors", "*.safetensors.index.json"]


def download(name: str, revision: str | None) -> tuple[Path, str]:
    """Downloads a checkpoint, or finds it in the hub cache.

    Without network a cached copy is used. Returns its folder and its commit.

    Raises:
        InputError: no such checkpoint or revision, or no access to it.
        ToolError: not reachable and not cached, or the cache disk is full.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    shown = name if revision is None else f"{name} at {revision}"
    if revision is not None and _COMMIT.fullmatch(revision):
        try:
            cached = snapshot_download(
                name, revision=revision, allow_patterns=_WANTED, local_files_only=True
            )
            if any(Path(cached).glob("*.safetensors")):
                return Path(cached), revision
        except LocalEntryNotFoundError:
            cached = None
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED))
    except GatedRepoError:
        raise InputError(f"{shown}: access is restricted; accept its terms and log in") from None
    except RevisionNotFoundError:
        raise InputError(f"{shown}: no such revision; name a commit, tag or branch") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{shown}: neither a local folder nor a public hub checkpoint; check the name"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise _unreachable(shown, error) from None
    except Exception as error:
        # The hub client passes on errors of whichever HTTP library it uses.
        raise _unreachable(shown, error) from error
    return folder, folder.name


def _unreachable(shown: str, error: Exception) -> BlipEdgeError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ToolError(
        f"{shown}: cannot be downloaded ({reason}); check network and disk, or download it "
        "elsewhere and give the folder as checkpoint"
    )
