"""Compares files with the sizes and SHA-256 digests of their manifest.

Large files are compared once: that a file had its digest is noted in a folder of the user's own,
under everything that changes when a file is written or replaced. So a start does not read hundreds
of megabytes to find what it found the last time, and any change is found.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from ..errors import ArtifactError
from .user_cache import new_entry, private_folder, prune

_CHUNK_BYTES = 1 << 20
#: Smaller files are read every time: it takes less than a millisecond.
_SMALL_BYTES = 1 << 20
#: A file written in the last moments could change again without a change of its time stamps.
_SETTLED_SECONDS = 2.0
#: Notes are empty files named by what they say; a folder of them is pruned beyond this many.
_MOST_NOTES = 10_000
_NOTES = "verified"


@dataclass(frozen=True)
class FileRecord:
    """Digest and size of one file."""

    sha256: str
    size_bytes: int


def check_files(
    manifest: Path,
    folder: Path,
    files: Mapping[str, FileRecord],
    *,
    digests: bool,
    remembered: bool = False,
) -> None:
    """Checks existence and size, and the SHA-256 if ``digests``, of the files a manifest lists.

    Args:
        manifest: for messages.
        folder: what the names are relative to.
        files: name to record.
        digests: compare digests too.
        remembered: a digest that was compared before need not be compared again.

    Raises:
        ArtifactError: a file is missing or differs from the manifest.
    """
    for name, record in files.items():
        path = folder / name
        try:
            if not path.is_file():
                raise ArtifactError(
                    f"{path}: missing (listed in {manifest.name}); rebuild or copy it"
                )
            size_bytes = path.stat().st_size
            if size_bytes != record.size_bytes:
                raise ArtifactError(
                    f"{path}: {size_bytes} bytes, {manifest.name} says {record.size_bytes}; "
                    "rebuild the artifact or copy it again"
                )
            same = not digests or _has_digest(path, record, remembered=remembered)
        except OSError as error:
            raise ArtifactError(
                f"{path}: cannot be read ({error.strerror}); give rights to it or copy it again"
            ) from None
        if not same:
            raise ArtifactError(
                f"{path}: SHA-256 differs from {manifest.name}; rebuild the artifact or copy it "
                "again (--no-verify-digest loads it anyway)"
            )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _has_digest(path: Path, record: FileRecord, *, remembered: bool) -> bool:
    if not remembered or record.size_bytes < _SMALL_BYTES:
        return file_sha256(path) == record.sha256
    notes = private_folder(_NOTES)
    before = path.stat()
    note = _note(path, before, record)
    if notes is not None and (notes / note).exists():
        return True
    begin = time.time()
    if file_sha256(path) != record.sha256:
        return False
    changed = max(before.st_mtime, before.st_ctime)
    settled = begin - changed > _SETTLED_SECONDS
    if notes is not None and settled and _note(path, path.stat(), record) == note:
        with new_entry(notes, note) as part:
            part.touch(mode=0o600)
        prune(notes, most_entries=_MOST_NOTES)
    return True


def _note(path: Path, found: os.stat_result, record: FileRecord) -> str:
    """A name for: this file, in this state, has this digest."""
    state = (
        os.path.realpath(str(path)),
        found.st_size,
        found.st_mtime_ns,
        # Set by the system at every change of a file, and by nobody else.
        found.st_ctime_ns,
        found.st_dev,
        found.st_ino,
        record.sha256,
    )
    return hashlib.sha256(repr(state).encode()).hexdigest()
