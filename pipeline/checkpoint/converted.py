"""Checkpoints in other formats, converted to HuggingFace's once and kept beside the artifacts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from configs.errors import InputError
from pipeline.atomic import artifact_lock, staging
from pipeline.checkpoint.files import CONFIG, PROCESSOR_FILES, WEIGHTS
from pipeline.checkpoint.tensors import Tensor, read_tensors
from pipeline.manifest import file_sha256, key_of

#: Raise it when a conversion gives something else than before.
VERSION = 1
_CONTENTS = "contents.json"


def entry(store: Path, sources: Mapping[str, str]) -> Path:
    """Where the conversion of files with these digests lies; it need not be there."""
    return store / key_of({"version": VERSION, "files": dict(sources)})[:24]


def small_files(folder: Path) -> dict[str, str]:
    """Digests of a checkpoint's configuration and processor files."""
    names = (CONFIG, *PROCESSOR_FILES)
    return {name: file_sha256(folder / name) for name in names if (folder / name).is_file()}


def read_entry(folder: Path, base: str | None = None) -> dict[str, Tensor] | None:
    """The tensors of a finished conversion; None if it is missing or not as it was written.

    ``base`` is the digest of other weights that it must have been made from.
    """
    try:
        contents = json.loads((folder / _CONTENTS).read_text(encoding="utf-8"))
        tensors = read_tensors(folder / WEIGHTS)
    except (OSError, ValueError, InputError):
        return None
    made_from = contents.pop("base", None) if isinstance(contents, dict) else None
    if base is not None and base != made_from:
        return None
    return tensors if contents == _contents(folder, tensors) else None


def converted(
    folder: Path, make: Callable[[Path], None], base: str | None = None
) -> dict[str, Tensor]:
    """The tensors of the conversion ``folder``, made now unless it is there undamaged."""
    found = read_entry(folder, base)
    if found is not None:
        return found
    store, name = folder.parent, folder.name
    with artifact_lock(store, name):
        if (found := read_entry(folder, base)) is not None:
            return found
        with staging(store, name) as temporary:
            make(temporary)
            tensors = read_tensors(temporary / WEIGHTS)
            contents = {**_contents(temporary, tensors), **({"base": base} if base else {})}
            (temporary / _CONTENTS).write_text(json.dumps(contents))
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    return tensors


def _contents(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, str]]:
    return {
        "files": small_files(folder),
        "tensors": {name: tensor.sha256 for name, tensor in tensors.items()},
    }
