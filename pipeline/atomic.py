"""Writes files and folders so that readers see the old or the new ones, never a part; and locks."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from configs.errors import ToolError


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file beside ``path`` to write to; it replaces ``path`` unless something is raised.

    Raises:
        ToolError: the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            _sync(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)
    except OSError as error:
        raise ToolError(
            f"{path}: cannot be written ({error.strerror}); free space or rights"
        ) from None


def write_atomically(path: Path, text: str) -> None:
    """Writes a small text file; see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def artifact_lock(folder: Path, stem: str) -> Iterator[None]:
    """Serialises builders of one artifact across processes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{stem}.lock")
    except OSError as error:
        raise ToolError(f"{folder}: cannot be written ({error.strerror})") from None
    with lock:
        yield


@contextmanager
def staging(folder: Path, stem: str) -> Iterator[Path]:
    """A temporary folder on the same file system, removed afterwards whatever happens.

    Leftovers of killed runs are removed first: the caller holds the artifact's lock.

    Raises:
        ToolError: the disk is full or the folder cannot be written.
    """
    prefix = f".{stem}.building-"
    for leftover in folder.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary: Path | None = None
    try:
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=prefix))
        yield temporary
    except OSError as error:
        where = error.filename or folder
        raise ToolError(
            f"{where}: {error.strerror or error}; check free space and rights of {folder}"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, folder: Path, names: list[str], manifest: Path) -> None:
    """Moves finished files into place; the old manifest goes first, so none describes new files."""
    for name in names:
        _sync(temporary / name)
    manifest.unlink(missing_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (temporary / name).replace(folder / name)
    _sync(folder)
