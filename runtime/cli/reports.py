"""What the command line prints: JSON lines for programs, tables and a progress line for people.

With the standard library only: boards have little else. Nothing that reaches a terminal moves its
cursor, and JSON is such that every reader takes it.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    TextIO,
    Tuple,
)

from ..decoding.batching import Timings

#: Control characters, line and paragraph ends, changes of direction, and halves of characters.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BAR_CELLS = 24
#: Characters of a text that a warning quotes.
_QUOTED = 60
#: Why a text was cut, and what to do.
_CUTS = {
    "length": "end at the length asked for; --max-new-tokens allows more",
    "cache": "end where this artifact's cache is full; build with larger shapes.past_tokens",
}
#: Columns of the timing table: heading, stage, and the unit that a row of the stage counts.
TIMING_COLUMNS = (
    ("preprocess", "preprocess"),
    ("vision", "vision"),
    ("text encoder", "text_encoder"),
    ("cross K/V", "cross_key_values"),
    ("first pass", "first_pass"),
    ("per token", "step"),
    ("text features", "text_encoder_unimodal"),
    ("image features", "vision_projection"),
)


def printable(text: str) -> str:
    """One line of text; what could move a cursor or break the line is written as an escape."""
    return _UNSAFE.sub(lambda found: ascii(found.group())[1:-1], text)


def say(text: str, stream: Optional[TextIO] = None) -> None:
    """Prints one line, at once."""
    print(printable(text), file=stream or sys.stdout, flush=True)


def say_json(record: Mapping[str, Any]) -> None:
    """Prints one JSON object; NaN and infinity, which JSON does not have, are an error.

    What is no ASCII stays as it is where standard output is UTF-8; what could move a cursor or
    break the line is an escape everywhere.
    """
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(record, allow_nan=False, ensure_ascii=not unicode)
    print(_UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text), flush=True)


@dataclass(frozen=True)
class Line:
    """One result: of which image, asked what, on which target, and the fields for programs."""

    image: Path
    subject: Optional[str]
    target: str
    text: str
    fields: Dict[str, Any]
    #: place among the results that are ranked, from 1; 0 for none
    rank: int = 0
    #: what its user should know of the question or text
    warning: Optional[str] = None
    #: people see how sure the model is
    confident: bool = False

    @property
    def shown(self) -> List[str]:
        """The result for people, and its alternatives, a line each."""
        others = [self._sure(one["text"], one) for one in self.fields.get("alternatives", [])]
        first = self._sure(self.text, self.fields)
        return [f"#{self.rank}  {first}" if self.rank else first, *others]

    def _sure(self, text: str, fields: Mapping[str, Any]) -> str:
        known = fields.get("confidence") if self.confident else None
        return text if known is None else f"{text}  confidence {known:.4f}"

    def record(self) -> Dict[str, Any]:
        """The result for programs."""
        added: Dict[str, Any] = {"rank": self.rank} if self.rank else {}
        if self.warning is not None:
            added["warning"] = self.warning
        return {"image": str(self.image), "target": self.target, **self.fields, **added}


@dataclass(frozen=True)
class Problem:
    """A text that cannot be used, in the place of its result."""

    message: str
    #: what the text is called, and the text
    fields: Dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """What people see of a run of results, known before the first one."""

    #: shown for each image; its file name where that is unambiguous
    names: Dict[Path, str]
    name_width: int
    #: longest question or text, 0 where nothing is asked
    subject_width: int = 0
    #: several targets are compared
    several_targets: bool = False

    @classmethod
    def of(
        cls, images: Sequence[Path], subjects: Iterable[str] = (), *, several_targets: bool = False
    ) -> "Columns":
        """The layout for these images, and the questions or texts that they are asked about."""
        different = set(images)
        short = len({path.name for path in different}) == len(different)
        names = {path: printable(path.name if short else str(path)) for path in different}
        width = max([len("image"), *map(len, names.values())])
        asked = max((len(printable(subject)) for subject in subjects), default=0)
        return cls(names, width, asked, several_targets)


class Report:
    """Prints results and problems as they come; results of several targets together at the end."""

    def __init__(
        self, *, as_json: bool, columns: Optional[Columns] = None, keep_images: int = 0
    ) -> None:
        """Prints nothing yet.

        Args:
            as_json: one JSON object per result instead of a table.
            columns: layout of the table; None prints no results but JSON.
            keep_images: images whose results are kept in ``lines``.
        """
        self._as_json = as_json
        #: layout of the table
        self.columns = columns
        self._grouped = columns is not None and columns.several_targets
        self._keep = keep_images
        self._kept: Set[Path] = set()
        self._header_printed = False
        self.lines: List[Line] = []
        self.problems = 0
        #: the only pictures that the checkpoint knows, where these are not photographs
        self.domain: Optional[str] = None
        #: called with each result
        self.also: Optional[Callable[[Line], None]] = None
        self._said: Set[str] = set()
        self._said_before: Set[str] = set()
        self._cut: Dict[str, int] = {}

    def add(self, line: Line) -> None:
        """Prints one result, or keeps it where results are to be grouped."""
        if self._grouped or len(self._kept | {line.image}) <= self._keep:
            self._kept.add(line.image)
            self.lines.append(line)
        if self.also is not None:
            self.also(line)
        finished = line.fields.get("finished", "end")
        self._cut[finished] = self._cut.get(finished, 0) + 1
        if line.warning is not None:
            warning = f"warning: {line.warning}: {(line.subject or '')[:_QUOTED]}"
            if warning not in self._said:
                self._said.add(warning)
                say(warning, sys.stderr)
        if self._as_json:
            say_json(line.record())
        elif self.columns is not None and not self._grouped:
            self._print_row(line, self.columns)

    def problem(
        self, message: str, each: Sequence[Mapping[str, Any]] = ({},), **fields: Any
    ) -> None:
        """Reports an input that is skipped.

        Args:
            message: what is wrong.
            each: for programs, one row for every result that there is none of: its text.
            **fields: for programs, what it is about.
        """
        self.problems += 1
        self._said.add(message)
        if message in self._said_before:
            return
        if self._as_json:
            first: Dict[str, Any] = {
                name: fields.pop(name) for name in ("image", "target") if name in fields
            }
            for more in each:
                say_json({**first, "error": message, **fields, **more})
        else:
            say(f"error: {message} (skipped)", sys.stderr)

    def begin_target(self) -> None:
        """From now on results are of another target: what was wrong before is not said again."""
        self._said_before |= self._said

    def conclude(self) -> None:
        """Says how many texts do not end by themselves (JSON says it of each), and the domain."""
        for why, cure in _CUTS.items():
            if self._cut.get(why) and not self._as_json:
                say(f"note: {self._cut[why]} of {sum(self._cut.values())} texts {cure}", sys.stderr)
        if self.domain is not None and not self.problems:
            say(
                f"note: this checkpoint knows only {self.domain}; "
                "what it says of other pictures is wrong",
                sys.stderr,
            )

    def _print_row(self, line: Line, columns: Columns) -> None:
        """A row of a table that is printed before all of it is known."""
        widths = [columns.name_width]
        cells = [columns.names.get(line.image, str(line.image))]
        if columns.subject_width:
            widths.append(max(len("asked"), columns.subject_width))
            cells.append(line.subject or "")
        if not self._header_printed:
            heads = ["image", "asked"][: len(widths)]
            say(_row(heads, widths, "result"))
            say(_row(["-" * width for width in widths], widths, "-" * len("result")))
            self._header_printed = True
        for text in line.shown:
            say(_row(cells, widths, text))

    def print_table(self) -> None:
        """Prints the results of several targets for people, grouped by image."""
        columns = self.columns
        if self._as_json or not self._grouped or columns is None or not self.lines:
            return
        asked = columns.subject_width > 0
        place: Dict[Tuple[Path, Optional[str]], int] = {}
        for line in self.lines:
            place.setdefault((line.image, line.subject), len(place))
        rows = [
            [
                columns.names.get(line.image, str(line.image)),
                *([line.subject or ""] if asked else []),
                line.target,
                text,
            ]
            for line in sorted(self.lines, key=lambda line: place[line.image, line.subject])
            for text in line.shown
        ]
        header = ["image", *(["asked"] if asked else []), "target", "result"]
        print(table(header, rows), flush=True)

    def print_timings(self, timings: Dict[str, Timings], rates: Dict[str, float]) -> None:
        """Prints mean milliseconds per image, question or token of every stage, and images per s.

        Args:
            timings: stages of each target.
            rates: images per second of each target, everything included.
        """
        used = [
            (heading, stage)
            for heading, stage in TIMING_COLUMNS
            if any(t.rows.get(stage) for t in timings.values())
        ]
        if self._as_json:
            for target, measured in timings.items():
                stages = {
                    stage: round(measured.milliseconds_per_row(stage), 3) for _, stage in used
                }
                record: Dict[str, Any] = {"target": target, "timing_ms": stages}
                if measured.drafted:
                    record["tokens_per_pass"] = round(measured.tokens_per_pass, 3)
                if target in rates:
                    record["images_per_s"] = round(rates[target], 3)
                say_json(record)
            return
        rows = [
            [
                target,
                *[f"{measured.milliseconds_per_row(stage):.2f}" for _, stage in used],
                f"{rates[target]:.2f}" if target in rates else "-",
            ]
            for target, measured in timings.items()
        ]
        for target, measured in timings.items():
            if measured.drafted:
                say(f"{target}: {measured.tokens_per_pass:.2f} tokens per pass of the decoder")
        print("\nmean time in ms per image, question or token")
        print(table(["target", *[heading for heading, _ in used], "images/s"], rows), flush=True)


def _row(cells: Sequence[str], widths: Sequence[int], last: str) -> str:
    padded = [printable(cell).ljust(width) for cell, width in zip(cells, widths)]
    return "  ".join([*padded, last])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned under a header; numbers to the right."""
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
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
        self._label = printable(label)
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
