"""What the command line prints: JSON lines for programs, readable lines and tables for people."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from runtime.tables import table
from runtime.timing import Timings

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


@dataclass(frozen=True)
class Line:
    """One result: of which image, asked what, on which target, and the fields for programs."""

    image: Path
    subject: Optional[str]
    target: str
    text: str
    fields: Dict[str, Any]


class Report:
    """Collects results and problems, and prints them as they come."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self.lines: List[Line] = []
        self.problems = 0

    def add(self, line: Line) -> None:
        """Prints one result."""
        self.lines.append(line)
        if self._as_json:
            record = {"image": str(line.image), "target": line.target, **line.fields}
            print(json.dumps(record), flush=True)

    def problem(self, image: Path, message: str) -> None:
        """Reports an input that is skipped."""
        self.problems += 1
        if self._as_json:
            print(json.dumps({"image": str(image), "error": message}), flush=True)
        else:
            print(f"error: {message} (skipped)", file=sys.stderr, flush=True)

    def print_table(self) -> None:
        """Prints the results for people: a table, grouped by image where targets are compared."""
        if self._as_json or not self.lines:
            return
        subjects = any(line.subject for line in self.lines)
        several = len({line.target for line in self.lines}) > 1
        header = ["image", *(["asked"] if subjects else []), *(["target"] if several else [])]
        ordered = self.lines
        if several:
            place: Dict[Tuple[Path, Optional[str]], int] = {}
            for line in self.lines:
                place.setdefault((line.image, line.subject), len(place))
            ordered = sorted(self.lines, key=lambda line: place[line.image, line.subject])
        rows = [
            [
                line.image.name,
                *([line.subject or ""] if subjects else []),
                *([line.target] if several else []),
                line.text,
            ]
            for line in ordered
        ]
        print(table([*header, "result"], rows), flush=True)

    def print_timings(self, timings: Dict[str, Timings]) -> None:
        """Prints mean milliseconds per image, question or token of every stage, per target."""
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
                print(json.dumps({"target": target, "timing_ms": stages}), flush=True)
            return
        rows = [
            [target, *[f"{measured.milliseconds_per_row(stage):.2f}" for _, stage in used]]
            for target, measured in timings.items()
        ]
        print("\nmean time in ms per image, question or token")
        print(table(["target", *[heading for heading, _ in used]], rows), flush=True)
