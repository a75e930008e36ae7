"""Gates of a pipeline file: how much worse than the checkpoint's a target's answers may be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from configs.schema import QualityGate

AGREEMENT = "agreement"
#: Room for the rounding of a difference of two metrics, far below what one item can change.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Judgement:
    """One limit of a gate, and whether it is kept."""

    #: ``agreement``, or the metric whose drop is limited
    name: str
    value: float
    limit: float
    passed: bool
    #: where the limit stands
    source: str

    @property
    def problem(self) -> str | None:
        """What is wrong, or None."""
        if self.passed:
            return None
        if self.name == AGREEMENT:
            return f"agreement {self.value:.4f} is below {self.limit:g} ({self.source})"
        return f"{self.name} drops by {self.value:.4f}, {self.limit:g} is allowed ({self.source})"


def gate_of(
    gates: Mapping[str, QualityGate], *, target: str, precision: str, mode: str
) -> tuple[str, QualityGate] | None:
    """The most specific gate that fits, with its name."""
    return next(fitting(gates, target=target, precision=precision, mode=mode), None)


def fitting(
    gates: Mapping[str, QualityGate], *, target: str, precision: str, mode: str
) -> Iterator[tuple[str, QualityGate]]:
    """Every gate that fits, with its name, the most specific one first."""
    names = [f"{target}.{precision}.{mode}", f"{target}.{precision}", precision]
    for name in names if mode else names[1:]:
        if name in gates:
            yield name, gates[name]


def judged(
    gate: QualityGate, source: str, agreement: float | None, drops: Mapping[str, float]
) -> list[Judgement]:
    """Every limit of a gate against what was measured.

    What was not measured is not judged; what is not a number fails.
    """
    found = []
    if gate.min_agreement is not None and agreement is not None:
        enough = agreement >= gate.min_agreement - _ROUNDING
        found.append(Judgement(AGREEMENT, agreement, gate.min_agreement, enough, source))
    for name, limit in gate.max_drop.items():
        if name in drops:
            drop = drops[name]
            kept = math.isfinite(drop) and drop <= limit + _ROUNDING
            found.append(Judgement(name, drop, limit, kept, source))
    return found
