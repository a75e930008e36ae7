"""Statistics of few, noisy samples: medians, spread, intervals that assume nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

#: Coverage that an interval should reach; few samples cannot, and then say what they do reach.
CONFIDENCE = 0.95


class Summary(BaseModel):
    """What repeated samples say. Never the best one: that is luck, not speed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    median: float
    #: quartiles
    q1: float
    q3: float
    #: median absolute deviation from the median
    mad: float
    #: confidence interval of the median
    low: float
    high: float
    #: probability that the interval holds the true median
    confidence: float


def summarise(values: Sequence[float]) -> Summary:
    """Median, spread and interval of at least one sample.

    Raises:
        ValueError: no samples, or one that is not finite.
    """
    if not values:
        raise ValueError("no samples")
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a sample is not finite")
    middle = statistics.median(values)
    low, high, confidence = median_interval(values)
    return Summary(
        count=len(values),
        median=middle,
        q1=quantile(values, 0.25),
        q3=quantile(values, 0.75),
        mad=statistics.median(abs(value - middle) for value in values),
        low=low,
        high=high,
        confidence=confidence,
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between order statistics (type 7 of Hyndman and Fan 1996)."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def median_interval(
    values: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Order statistics that enclose the true median, whatever the distribution.

    The number of samples below the median is binomial with probability one half, so the interval
    from the k-th smallest to the k-th largest of n holds it with probability 1 - 2 P(B(n, 1/2) <
    k).

    Returns:
        low, high, and that probability: of the narrowest such interval that reaches
        ``confidence``, or of the whole range where the samples are too few for it.
    """
    ordered, count = sorted(values), len(values)
    best = 1
    while 2 * (best + 1) <= count + 1 and _coverage(count, best + 1) >= confidence:
        best += 1
    if count == 1:
        return ordered[0], ordered[0], 0.0
    return ordered[best - 1], ordered[count - best], _coverage(count, best)


def _coverage(count: int, rank: int) -> float:
    tail = sum(math.comb(count, below) for below in range(rank)) / 2**count
    return float(1.0 - 2.0 * tail)


def paired_ratios(
    numerators: Mapping[int, float], denominators: Mapping[int, float]
) -> dict[int, float]:
    """Per-round ratios of the rounds that both have: what drifts with the machine cancels."""
    return {
        turn: numerators[turn] / denominators[turn]
        for turn in sorted(numerators)
        if turn in denominators and denominators[turn] > 0
    }
