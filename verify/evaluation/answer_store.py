"""Answers on the disk, one line per item: a killed run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.json_file import append_lines, read_lines

Answer = dict[str, Any]


class AnswerStore:
    """Answers of one subject to one data set, by item number.

    A line that a kill cut off is computed again, and so is one whose image changed since: its
    ``stamp`` is another one.
    """

    def __init__(self, path: Path, stamps: Iterable[str]) -> None:
        """Reads the stored answers to the items that have these stamps."""
        self._path = path
        self._stamps = list(stamps)
        self._answers: dict[int, Answer] = {}
        for line in read_lines(path):
            number, answer = line.get("n"), line.get("a")
            if isinstance(number, int) and 0 <= number < len(self._stamps):
                # The last line about an item counts, also one about another image.
                self._answers.pop(number, None)
                if line.get("s") == self._stamps[number] and isinstance(answer, dict) and answer:
                    self._answers[number] = answer

    @property
    def missing(self) -> list[int]:
        """Item numbers without an answer, in order."""
        return [number for number in range(len(self._stamps)) if number not in self._answers]

    def add(self, answers: Iterable[tuple[int, Answer]]) -> None:
        """Stores answers by item number; on the disk when this returns.

        Raises:
            ToolError: the disk is full or the folder cannot be written.
        """
        found = dict(answers)
        append_lines(self._path, ({"n": n, "s": self._stamps[n], "a": a} for n, a in found.items()))
        self._answers |= found

    def __getitem__(self, number: int) -> Answer:
        return self._answers[number]
