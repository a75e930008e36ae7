"""Thousands of images through one process: does an image's cost or the memory grow?"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.campaign import Measures
from benchmarks.results import Endurance
from benchmarks.schedule import GREEDY

#: Between two looks at clock and memory.
_CHUNK_S = 2.0
#: The first and last part of the run that are compared.
_PART = 0.1


def endure(worker: Measures, images: int, report: Callable[[int, float], None]) -> Endurance:
    """Captions ``images`` images one by one; compares the last tenth with the first after it.

    The very first tenth fills allocators and caches, so growth is counted from its end.

    Args:
        worker: a mode of ours, warmed up.
        images: how many.
        report: told how many are done and the seconds that are left.

    Raises:
        WorkerError: the variant failed.
    """
    done, spent_s = 0, 0.0
    costs: list[tuple[int, float]] = []
    resident: list[tuple[int, int]] = []
    while done < images:
        sample = worker.measure(GREEDY, _CHUNK_S)
        done += int(sample["calls"])
        spent_s += float(sample["seconds"])
        costs.append((done, float(sample["total_ms"])))
        resident.append((done, worker.memory()["resident_bytes"]))
        report(done, spent_s / done * (images - done))
    return conclude(images, costs, resident)


def conclude(
    images: int, costs: list[tuple[int, float]], resident: list[tuple[int, int]]
) -> Endurance:
    """Growth of cost and memory, from ``(images done, figure)`` along the run."""
    early = [ms for done, ms in costs if done <= 2 * _PART * images and done > _PART * images]
    late = [ms for done, ms in costs if done > (1 - _PART) * images]
    settled = [size for done, size in resident if done > _PART * images]
    before = statistics.median(early or [costs[0][1]])
    after = statistics.median(late or [costs[-1][1]])
    return Endurance(
        images=costs[-1][0],
        early_ms=before,
        late_ms=after,
        cost_growth=after / before - 1.0,
        resident_bytes=settled[0],
        resident_growth=settled[-1] / settled[0] - 1.0,
    )
