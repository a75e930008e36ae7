"""Checkpoints from the model hub, pinned to a commit: what is there first, then its files."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from configs.errors import BlipEdgeError, InputError, ToolError
from pipeline.checkpoint.files import CONFIG, INDEXES
from pipeline.checkpoint.tensors import checked_sha256

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_URL = re.compile(r"https?://[^/]+/(?P<id>[^/]+/[^/]+)(/.*)?")
#: owner of the public checkpoints
_OWNER = "Salesforce"


@dataclass(frozen=True)
class Remote:
    """A checkpoint on the hub: its commit, and the folder of the hub's cache that holds it."""

    name: str
    folder: Path
    #: sizes by file name; without network, of what is cached
    sizes: Mapping[str, int]
    #: whether that is the hub's whole list
    listed: bool

    @property
    def commit(self) -> str:
        """The commit's 40 digits."""
        return self.folder.name

    def missing(self, names: list[str]) -> dict[str, int]:
        """Sizes of the files that are still to be downloaded."""
        return {name: self.sizes[name] for name in names if not (self.folder / name).is_file()}


def look_up(name: str, revision: str | None) -> Remote:
    """Asks for a checkpoint's files and downloads its configuration, but no weights.

    Without network the cached copy is used; of a commit that is cached the hub is not asked.

    Raises:
        InputError: no such checkpoint or revision, or no access to it.
        ToolError: not reachable and not cached, or the cache disk is full.
    """
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    with _messages(name, revision):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, *INDEXES]))
    for path in folder.glob("*.json") if folder.is_dir() else ():
        checked_sha256(path, _blob(path))
    try:
        tree = get_cached_repo_tree(name, revision=folder.name)
        return Remote(name, folder, {file.path: file.size for file in tree}, listed=True)
    except CachedRepoTreeNotFoundError:
        cached = {path.name: path.stat().st_size for path in folder.iterdir()}
        return Remote(name, folder, cached, listed=False)


def download(remote: Remote, names: list[str]) -> dict[str, str | None]:
    """Completes the cached copy; returns each file's digest as the hub lists it.

    That is a SHA-256 or the id of a git blob; of a file that was cached before it is what the
    cache calls its blob, and None where the cache keeps no blobs.

    Raises:
        InputError, ToolError: as ``look_up``.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.hf_api import RepoFile

    listed: dict[str, str] = {}
    if remote.missing(names):
        with _messages(remote.name, remote.commit):
            snapshot_download(remote.name, revision=remote.commit, allow_patterns=names)
            for file in HfApi().list_repo_tree(remote.name, recursive=True, revision=remote.commit):
                if isinstance(file, RepoFile):
                    listed[file.path] = file.lfs.sha256 if file.lfs else file.blob_id
    return {name: listed.get(name) or _blob(remote.folder / name) for name in names}


def _blob(path: Path) -> str | None:
    real = path.resolve()
    return real.name if real.parent.name == "blobs" and _DIGEST.fullmatch(real.name) else None


def likely_id(source: str) -> str:
    """Advice for a checkpoint that is neither a folder nor a hub id."""
    if match := _URL.fullmatch(source):
        return f"write the hub's id: {match['id']}"
    if re.fullmatch(r"blip-[a-z0-9-]+", source):
        return f"write the hub's id with its owner: {_OWNER}/{source}"
    return "give a folder in the HuggingFace format, a .pth file or a hub id (owner/name)"


@contextmanager
def _messages(name: str, revision: str | None) -> Iterator[None]:
    """Turns the hub client's errors into one line, and keeps its bars out of logs."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    shown = name if revision is None else f"{name} at {revision}"
    try:
        yield
    except GatedRepoError:
        raise InputError(f"{shown}: access is restricted; accept its terms and log in") from None
    except RevisionNotFoundError:
        raise InputError(f"{shown}: no such revision; name a commit, tag or branch") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{shown}: neither a local folder nor a public hub checkpoint; check the name"
        ) from None
    except HFValidationError:
        raise InputError(f"{shown}: no id of the hub; {likely_id(name)}") from None
    except Exception as error:
        # The hub client passes on errors of whichever HTTP library it uses.
        raise _unreachable(shown, error) from error


def _unreachable(shown: str, error: BaseException) -> BlipEdgeError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    cure = "check network and disk, or download it elsewhere and give the folder as checkpoint"
    chain: BaseException | None = error
    while chain is not None:
        if "Timeout" in type(chain).__name__:
            cure = (
                "the hub is slow: set HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT to more "
                "seconds than their 10"
            )
        chain = chain.__cause__
    return ToolError(f"{shown}: cannot be downloaded ({reason}); {cure}")
