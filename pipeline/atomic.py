"""Writes files and folders so that readers see the old or the new ones, never a part; and locks."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from configs.errors import ToolError
from pipeline.console import messages

#: How long a run waits for another one before it says so.
_SILENT_S = 1.0


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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Not ``tempfile``: its files are for their owner alone, whatever the umask says.
            temporary.touch(exist_ok=False)
            yield temporary
            _sync(temporary)
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
    """Serialises builders of one artifact across processes; says so when it has to wait.

    What only reads needs no lock: an artifact appears whole.

    Raises:
        ToolError: the folder cannot be written.
    """
    path = folder / f".{stem}.lock"
    lock = FileLock(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=_SILENT_S)
        except Timeout:
            messages.print(f"waiting for another run{_holder(path)} that works on {folder / stem}")
            lock.acquire()
    except OSError as error:
        raise ToolError(
            f"{folder}: cannot be written ({error.strerror or error}); give rights to this user"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _holder(lock: Path) -> str:
    """Which process holds a lock, where the kernel tells."""
    with suppress(OSError):
        inode = lock.stat().st_ino
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            _, kind, _, _, process, file, *_ = line.split()
            if kind == "FLOCK" and file.endswith(f":{inode}") and int(process) > 0:
                return f" (process {process})"
    return ""


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
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{prefix}{secrets.token_hex(4)}"
        temporary.mkdir()
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
