"""Opened model files that several sessions share: the nets of a task may lie in one file."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple


class FilePool:
    """Opens each file once and closes it when its last user has given it back."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._open: Dict[Path, Tuple[Any, List[int]]] = {}
        self._locks: Dict[Path, Any] = {}

    def take(self, path: Path, opened: Callable[[], Any]) -> Any:
        """The file's engine, made by ``opened`` for the first user."""
        with self._guard:
            if path not in self._open:
                self._open[path] = (opened(), [0])
            engine, users = self._open[path]
            users[0] += 1
            return engine

    def give_back(self, path: Path, close: Callable[[Any], None]) -> None:
        """One user less; the last one's ``close`` gets the engine."""
        with self._guard:
            engine, users = self._open[path]
            users[0] -= 1
            if users[0] == 0:
                del self._open[path]
                close(engine)

    def lock(self, path: Path) -> Any:
        """The lock of everyone who uses the file: its nets run one after the other."""
        with self._guard:
            return self._locks.setdefault(path, threading.RLock())
