"""Results of checks: what verify.json holds, and the store that makes a verification resumable."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from configs.schema import Component, Precision, Task
from configs.tolerances import Gap
from pipeline.atomic import write_atomically
from pipeline.json_file import append_lines, read_lines
from pipeline.manifest import from_json

Kind = Literal["component", "tokens", "scores", "host", "file", "layers"]

STORE_FILE = "verify-checks.jsonl"


@dataclass(frozen=True)
class Subject:
    """What one check is about.

    ``variant`` tells apart checks of one artifact: OpenVINO's ``exact`` and ``fast`` modes,
    ``padded`` inputs.
    """

    gap: Gap
    task: Task
    component: Component | None
    target: str
    precision: Precision
    kind: Kind
    variant: str = ""

    @property
    def named_component(self) -> Component:
        """The component of a component check.

        Raises:
            ValueError: a check of whole answers.
        """
        if self.component is None:
            raise ValueError(f"{self.name}: covers all components")
        return self.component

    @property
    def name(self) -> str:
        """How messages call it."""
        what = self.component or self.kind
        parts = [self.task, what, self.target, self.precision, self.variant]
        return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class Check:
    """A finished check."""

    subject: Subject
    #: cases compared
    samples: int
    metrics: dict[str, Any]
    tolerance: dict[str, Any]
    #: every reason why it failed; empty when passed
    problems: tuple[str, ...] = ()
    key: str = field(default="", compare=False)
    #: how long the check took, in seconds
    seconds: float = field(default=0.0, compare=False)

    @property
    def passed(self) -> bool:
        """Nothing wrong found, and something was compared."""
        return not self.problems and self.samples > 0

    def record(self) -> dict[str, Any]:
        """As it stands in verify.json."""
        problems = list(self.problems)
        if self.samples == 0 and not problems:
            problems = ["nothing was compared"]
        return {
            **asdict(self.subject),
            "samples": self.samples,
            "metrics": self.metrics,
            "tolerance": self.tolerance,
            "passed": self.passed,
            "problems": problems,
            "key": self.key,
            "seconds": self.seconds,
        }

    @staticmethod
    def of(record: dict[str, Any]) -> Check:
        """The check that a record describes.

        Raises:
            ValueError: not a record of this version.
        """
        return from_json(Check, {**record, "subject": record})


class Store:
    """Finished checks, one JSON line each, appended as they finish: a killed run goes on there.

    Only passed checks count as done: a failed one runs again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checks: dict[str, Check] = {}
        lines = read_lines(path)
        for line in lines:
            try:
                check = Check.of(line)
            except ValueError:
                continue  # damaged, or of an older version: that check runs again
            self._checks[check.key] = check
        self._superseded = len(lines) > 2 * len(self._latest())

    def find(self, key: str) -> Check | None:
        """The passed check of this key, or None."""
        return self._checks.get(key)

    def add(self, check: Check) -> None:
        """Stores a check if it passed; on the disk when this returns.

        Raises:
            ToolError: the disk is full or the folder cannot be written.
        """
        if not check.passed:
            return
        self._checks[check.key] = check
        append_lines(self._path, [check.record()])

    def compact(self) -> None:
        """Drops replaced results once they outnumber the current ones."""
        if self._superseded:
            lines = (json.dumps(check.record()) for check in self._latest())
            write_atomically(self._path, "".join(f"{line}\n" for line in lines))
            self._superseded = False

    def _latest(self) -> list[Check]:
        return list({check.subject: check for check in self._checks.values()}.values())


def passed(checks: Iterable[Check]) -> bool:
    """Whether a verification passed: at least one check, and none failed."""
    every = list(checks)
    return bool(every) and all(check.passed for check in every)
