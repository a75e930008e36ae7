"""Plain-text tables and a progress line, with the standard library: boards have little else."""

from __future__ import annotations

import sys
from typing import List, Optional, Sequence, TextIO

_BAR_CELLS = 24


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned under a header; numbers to the right."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [bool(rows) and all(_is_number(row[c]) for row in rows) for c in range(len(header))]
    lines: List[str] = []
    for index, row in enumerate(cells):
        padded = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right)
        ]
        lines.append("  ".join(padded).rstrip())
        if index == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def mebibytes(size_bytes: int) -> str:
    """A size as text in MiB."""
    return f"{size_bytes / (1 << 20):.1f}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("", "-")
    return True


class Progress:
    """A bar on standard error while many items are worked on; silent where nobody watches."""

    def __init__(self, total: int, label: str, stream: Optional[TextIO] = None) -> None:
        self._total = total
        self._label = label
        self._stream = stream or sys.stderr
        self._shown = total > 1 and self._stream.isatty()
        self._done = 0

    def advance(self, count: int = 1) -> None:
        """Counts finished items."""
        self._done += count
        if self._shown:
            filled = _BAR_CELLS * self._done // self._total
            bar = "#" * filled + "." * (_BAR_CELLS - filled)
            self._stream.write(f"\r{self._label} [{bar}] {self._done}/{self._total}")
            self._stream.flush()

    def clear(self) -> None:
        """Removes the bar."""
        if self._shown:
            self._stream.write("\r\033[K")
            self._stream.flush()
