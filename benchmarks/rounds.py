"""Takes the samples: every round measures each variant once, and begins with another one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.variants.base import Workload
from benchmarks.workers import Sample, VariantError, Worker

#: A sample lasts at least this long: short calls are repeated, so that clocks matter little.
LEAST_SAMPLE_S = 0.25


@dataclass
class Measured:
    """Samples by variant and workload, one per round, and why variants dropped out."""

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    #: after the first workload of the warm-up
    peak_bytes: dict[str, int] = field(default_factory=dict)
    #: variant -> reason, one line
    failures: dict[str, str] = field(default_factory=dict)


def rotated(items: Sequence[str], turn: int) -> list[str]:
    """The items, begun at another one each turn: none always follows the same warm caches."""
    start = turn % len(items) if items else 0
    return [*items[start:], *items[:start]]


def measure(
    workers: Mapping[str, Worker],
    workloads: Sequence[Workload],
    rounds: int,
    report: Callable[[str], None],
) -> Measured:
    """Warms every variant up on every workload, then takes the rounds.

    A variant that fails leaves the others measured.
    """
    measured = Measured()
    for name, worker in workers.items():
        report(f"warming up {name}")
        try:
            for workload in workloads:
                worker.measure(workload, 0.0)  # compiles for the shape
                sample = worker.measure(workload, 0.0)
                measured.peak_bytes.setdefault(name, sample.peak_bytes)
        except VariantError as error:
            measured.failures[name] = str(error)
    begin = time.monotonic()
    for turn in range(rounds):
        left_s = (time.monotonic() - begin) / max(1, turn) * (rounds - turn)
        report(f"round {turn + 1} of {rounds}" + (f", about {left_s:.0f} s left" if turn else ""))
        for name in rotated([name for name in workers if name not in measured.failures], turn):
            try:
                for workload in workloads:
                    sample = workers[name].measure(workload, LEAST_SAMPLE_S)
                    cell = measured.samples.setdefault(name, {}).setdefault(workload.name, [])
                    cell.append(sample)
            except VariantError as error:
                measured.failures[name] = str(error)
                measured.samples.pop(name, None)
    return measured
