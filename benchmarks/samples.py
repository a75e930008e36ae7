"""Raw samples, and where an interrupted run keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.load_watch import disturbed
from benchmarks.schedule import FEWEST_ROUNDS


class Sample(BaseModel):
    """One measurement: the mean of ``calls`` calls."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block: str
    turn: int
    variant: str
    workload: str
    total_ms: float
    stages_ms: dict[str, float] = {}
    #: each decoder step after the first pass
    steps_ms: tuple[float, ...] = ()
    #: operations or bytes per second (machine limits)
    rate: float | None = None
    calls: int = 1
    #: share of a core that other processes took meanwhile
    others: float = 0.0
    #: measurements thrown away for that before this one
    retaken: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing else used the machine."""
        return not disturbed(self.others)


def usable(samples: Sequence[Sample]) -> list[Sample]:
    """The clean samples, or all where too few are clean: then the result says so."""
    clean = [sample for sample in samples if sample.clean]
    return clean if len(clean) >= min(FEWEST_ROUNDS, len(samples)) else list(samples)


class SampleStore:
    """Samples of a run in progress, one JSON object per line, readable after a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Sample]:
        """What an interrupted run left; a damaged line ends the list."""
        found: list[Sample] = []
        if not self.path.is_file():
            return found
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(Sample.model_validate_json(line))
            except ValidationError:
                break
        return found

    def add(self, sample: Sample) -> None:
        """Appends one sample."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(sample.model_dump()) + "\n")

    def replace(self, samples: Iterable[Sample]) -> None:
        """Keeps only these."""
        self.path.unlink(missing_ok=True)
        for sample in samples:
            self.add(sample)


def complete_rounds(
    samples: Sequence[Sample], expected: Sequence[tuple[str, str]], block: str
) -> list[Sample]:
    """Samples of the leading rounds of a block in which every expected one was taken.

    A half-finished round is dropped: its ratios would compare different minutes.
    """
    kept: list[Sample] = []
    turn = 0
    while True:
        of_turn = [s for s in samples if s.block == block and s.turn == turn]
        if {(s.variant, s.workload) for s in of_turn} != set(expected) or not expected:
            return kept
        kept += of_turn
        turn += 1
