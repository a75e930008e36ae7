"""Intermediates that several artifacts share, kept in the pipeline's work folder."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.atomic import artifact_lock, staging
from pipeline.build import files_match
from pipeline.json_file import stored
from pipeline.manifest import FileRecord, file_record, from_json, key_of

#: What an intermediate's folder has, written last.
CONTENTS = "contents.json"
#: A folder that no run has used for this long is removed when another of its name is made. Another
#: run may just be at work with the previous one, so being out of date is not enough.
_KEPT_S = 3600.0


@dataclass(frozen=True)
class _Contents:
    files: Mapping[str, FileRecord]


@dataclass(frozen=True)
class Intermediate:
    """An intermediate that a plan names before it is made."""

    work: Path
    name: str
    key_inputs: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where it is, or will be."""
        return cached_path(self.work, self.name, self.key_inputs)

    def made(self, make: Callable[[Path], None]) -> Path:
        """Its folder, complete; see :func:`cached`."""
        return cached(self.work, self.name, self.key_inputs, make)


def cached_path(work: Path, name: str, key_inputs: dict[str, Any]) -> Path:
    """Where the intermediate ``name`` made from ``key_inputs`` lies."""
    return work / f"{name}.{key_of(key_inputs)[:12]}"


def cached(work: Path, name: str, key_inputs: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder of an intermediate, made now unless it is there complete.

    A folder gets its final name by a rename when everything in it is written, so a killed run
    leaves none. Long unused folders of the same name, made from other inputs, are removed.
    """
    path = cached_path(work, name, key_inputs)
    if _complete(path):
        return path
    with artifact_lock(work, name):
        if _complete(path):
            return path
        with staging(work, name) as temporary:
            make(temporary)
            records = {
                file.name: asdict(file_record(file))
                for file in sorted(temporary.iterdir())
                if file.is_file()
            }
            (temporary / CONTENTS).write_text(json.dumps(records, indent=1))
            _remove_unused(work, name)
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
    return path


def _remove_unused(work: Path, name: str) -> None:
    for contents in work.glob(f"{name}.*/{CONTENTS}"):
        if time.time() - contents.stat().st_mtime > _KEPT_S:
            shutil.rmtree(contents.parent, ignore_errors=True)


def _complete(path: Path) -> bool:
    """Whether a folder is there, undamaged; it counts as used now."""
    contents = stored(path / CONTENTS, lambda data: from_json(_Contents, {"files": data}))
    if contents is None or not files_match(path, contents.files):
        return False
    with suppress(OSError):  # another user's, which that user's runs keep
        os.utime(path / CONTENTS)
    return True
