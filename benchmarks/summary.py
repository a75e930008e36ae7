"""Statistics of few, noisy samples: medians, and intervals that assume nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

#: Coverage that an interval should reach; few samples cannot, and then say what they do reach.
CONFIDENCE = 0.95


class Summary(BaseModel):
    """What repeated samples say. Never the best one: that is luck, not speed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    median: float
    #: confidence interval of the median
    low: float
    high: float
    #: probability that the interval holds the true median
    confidence: float


def summarise(values: Sequence[float]) -> Summary:
    """Median of at least one sample, and the order statistics that enclose the true one.

    The number of samples below the median is binomial with probability one half, so the interval
    from the k-th smallest to the k-th largest of n holds it with probability 1 - 2 P(B(n, 1/2) <
    k). Taken is the narrowest that reaches ``CONFIDENCE``, or the whole range where the samples
    are too few for it.

    Raises:
        ValueError: no samples, or one that is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError("no samples, or one that is not finite")
    ordered, count = sorted(values), len(values)
    rank = 1
    while 2 * (rank + 1) <= count + 1 and _coverage(count, rank + 1) >= CONFIDENCE:
        rank += 1
    return Summary(
        count=count,
        median=statistics.median(values),
        low=ordered[rank - 1],
        high=ordered[count - rank],
        confidence=_coverage(count, rank),
    )


def ratio(above: Sequence[float], below: Sequence[float]) -> Summary:
    """Median of the ratios within each round: what drifts with the machine cancels."""
    return summarise([one / other for one, other in zip(above, below, strict=True)])


def _coverage(count: int, rank: int) -> float:
    tail = sum(math.comb(count, below) for below in range(rank)) / 2**count
    return float(max(0.0, 1.0 - 2.0 * tail))
