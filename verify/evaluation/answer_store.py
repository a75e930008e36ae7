"""Answers on the disk, one line per item: a killed run goes on where it stopped."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from configs.errors import ToolError

Answer = dict[str, Any]
_ABSENT = -1


class AnswerStore:
    """Answers of one subject to one data set, appended as they come, found by item number.

    Only byte offsets are kept in memory. A line that a kill cut off is computed again, and so is
    one whose image changed since (``stamp``).
    """

    def __init__(self, path: Path, items: int) -> None:
        """Opens or creates the store; ``items`` is how many of them this run needs.

        Raises:
            ToolError: the folder cannot be written.
        """
        self._path = path
        self._offsets = array("q", [_ABSENT]) * items
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("a+b")
        except OSError as error:
            raise _unwritable(path, error) from None
        self._stamps: dict[int, str] = {}
        self._scan()

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.close()

    def forget_changed(self, stamps: Iterable[tuple[int, str]]) -> None:
        """Drops answers about other contents than ``(number, stamp)`` now says."""
        for number, stamp in stamps:
            if self._stamps.get(number, "") != stamp:
                self._offsets[number] = _ABSENT
        self._stamps = {}

    def missing(self) -> list[range]:
        """Item numbers without an answer, as ranges in order."""
        found: list[range] = []
        for number, offset in enumerate(self._offsets):
            if offset != _ABSENT:
                continue
            if found and found[-1].stop == number:
                found[-1] = range(found[-1].start, number + 1)
            else:
                found.append(range(number, number + 1))
        return found

    def add(self, answers: Iterable[tuple[int, str, Answer]]) -> None:
        """Appends ``(number, stamp, answer)``; on the disk when this returns.

        Raises:
            ToolError: the disk is full.
        """
        try:
            for number, stamp, answer in answers:
                line = json.dumps({"n": number, "s": stamp, "a": answer}, separators=(",", ":"))
                self._stream.seek(0, os.SEEK_END)
                self._offsets[number] = self._stream.tell()
                self._stream.write(line.encode() + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise _unwritable(self._path, error) from None

    def get(self, number: int) -> Answer:
        """The answer to one item.

        Raises:
            KeyError: it has none yet.
        """
        offset = self._offsets[number]
        if offset == _ABSENT:
            raise KeyError(number)
        self._stream.seek(offset)
        answer: Answer = json.loads(self._stream.readline())["a"]
        return answer

    def _scan(self) -> None:
        self._stream.seek(0)
        offset = 0
        whole = True
        for line in self._stream:
            whole = line.endswith(b"\n")
            record = _record(line) if whole else None
            if record is not None and 0 <= record["n"] < len(self._offsets):
                self._offsets[record["n"]] = offset
                # Scenes have no stamps: nothing is kept for them.
                if record["s"]:
                    self._stamps[record["n"]] = record["s"]
            offset += len(line)
        if not whole:
            self._stream.seek(0, os.SEEK_END)
            self._stream.write(b"\n")


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        if isinstance(record["n"], int) and isinstance(record["s"], str) and record["a"]:
            return dict(record)
    except (ValueError, KeyError, TypeError):
        return None  # cut off by a kill, or damaged: that item is asked again
    return None


def _unwritable(path: Path, error: OSError) -> ToolError:
    return ToolError(f"{path}: cannot be written ({error.strerror}); free space or rights")
