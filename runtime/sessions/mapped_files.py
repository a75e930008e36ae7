"""Files of weights in memory, mapped: what a backend reads of one is read from disk when it asks.

A backend repacks most weights for its processor, once. The pages of the file itself are not read
again after that, but count as the process's memory until somebody lets go of them.
"""

from __future__ import annotations

import mmap
import threading
from pathlib import Path
from typing import Dict, Tuple

import numpy as np


class MappedFile:
    """A file's bytes, as a backend may borrow them."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as stream:
            # OpenVINO asks for memory that it could write; the file itself never changes.
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        self.array = np.frombuffer(self._map, dtype=np.uint8)

    def forget(self) -> None:
        """Lets go of the pages read so far; the system keeps them, and they come back when needed.

        Weights that were repacked for the processor would otherwise be counted twice.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


_MAPPED: Dict[Tuple[str, int, int, int], MappedFile] = {}
_LOCK = threading.Lock()


def mapped(path: Path) -> MappedFile:
    """A file's mapping, for the rest of the process: a request may outlive its session.

    A file that another has replaced is mapped anew.
    """
    found = path.stat()
    key = (str(path), found.st_ino, found.st_size, found.st_mtime_ns)
    with _LOCK:
        if key not in _MAPPED:
            _MAPPED[key] = MappedFile(path)
        return _MAPPED[key]
