"""A folder of this user's own, for what makes later starts faster: compiled models, checked files.

Nothing in it is needed, and nothing is put where another user could have prepared or could change
it: what lies there is believed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import time
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

#: Names the folder; empty for none.
CACHE_VARIABLE = "BLIP_EDGE_CACHE"
_PRIVATE = 0o700
_OTHERS = 0o077
_STALE_SECONDS = 24 * 3600.0
#: In the names of entries that are still being written.
_UNFINISHED = ".part"


def cache_root() -> Optional[Path]:
    """``$BLIP_EDGE_CACHE``, or ``blip-edge`` in the user's cache folder; None if there is none."""
    given = os.environ.get(CACHE_VARIABLE)
    if given is not None:
        return Path(given) if given else None
    standard = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    if standard and Path(standard).is_absolute():
        return Path(standard) / "blip-edge"
    try:
        return Path.home() / ".cache" / "blip-edge"
    except RuntimeError:
        return None


def private_folder(*names: str, root: Optional[Path] = None) -> Optional[Path]:
    """A folder below the cache that only this user can read and write, made if need be.

    Args:
        names: the folder's place below the root.
        root: instead of ``cache_root``.

    Returns:
        the folder, or None where there is none: no home, no space, or somebody else's.
    """
    base = cache_root() if root is None else root
    if base is None:
        return None
    folder = base.joinpath(*names)
    try:
        folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        # The root may be a folder of the user's choice, with rights of its own.
        if not all(_is_private(base.joinpath(*names[: n + 1])) for n in range(len(names))):
            return None
    except (OSError, ValueError):
        return None
    return folder if os.access(str(folder), os.W_OK | os.X_OK) else None


def _is_private(folder: Path) -> bool:
    found = os.lstat(str(folder))
    if not stat.S_ISDIR(found.st_mode):
        return False
    if not hasattr(os, "geteuid"):
        return True
    if found.st_uid != os.geteuid():
        return False
    if stat.S_IMODE(found.st_mode) & _OTHERS:
        folder.chmod(_PRIVATE)
    return True


@contextlib.contextmanager
def new_entry(folder: Path, name: str) -> Iterator[Path]:
    """A file to write; it becomes ``folder / name`` in one step when the block ends without error.

    Of processes that write one entry at a time, the last wins; readers see a whole file or none.
    Not being able to write is no error: the entry is then not there.
    """
    part = folder / f"{name}.{os.getpid()}.{time.monotonic_ns()}{_UNFINISHED}"
    try:
        with contextlib.suppress(OSError):
            yield part
            if part.exists():
                part.replace(folder / name)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def prune(
    folder: Path, *, most_bytes: Optional[int] = None, most_entries: Optional[int] = None
) -> None:
    """Removes entries, the longest unused first, until at most this much is left.

    An entry's time of modification says when it was last used (``mark_used``). A process that has
    an entry mapped keeps it.
    """
    entries: List[Tuple[float, int, Path]] = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                found = path.stat()
                entries.append((found.st_mtime, found.st_size, path))
    total, count, now = sum(size for _, size, _ in entries), len(entries), time.time()
    for used, size, path in sorted(entries):
        abandoned = path.name.endswith(_UNFINISHED) and now - used > _STALE_SECONDS
        too_large = most_bytes is not None and total > most_bytes
        too_many = most_entries is not None and count > most_entries
        if too_large or too_many or abandoned:
            total, count = total - size, count - 1
            with contextlib.suppress(OSError):
                path.unlink()


def mark_used(path: Path) -> None:
    """Notes that an entry was used now."""
    with contextlib.suppress(OSError):
        os.utime(str(path))


def free_bytes(folder: Path) -> int:
    """Space left for entries in a folder, in bytes."""
    try:
        return shutil.disk_usage(str(folder)).free
    except OSError:
        return 0
