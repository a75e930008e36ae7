"""Bootstrap intervals: items drawn anew with replacement, the same draws for both sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verify.answers.metrics.statistics import Floats, Statistic

#: Replicates computed at once: bounds the weight matrix over large data sets.
_AT_ONCE = 32


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap interval; bounds are NaN where no replicate was defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A target's metric beside the checkpoint's on the same items; a positive drop is worse."""

    target: Interval
    checkpoint: Interval
    drop: Interval


def compare(
    target: Statistic, checkpoint: Statistic, *, replicates: int, confidence: float, seed: int
) -> Comparison:
    """Percentile intervals of both metrics and of their paired difference.

    Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13. Pairing removes the spread
    between easy and hard items, which is the same for both sides.

    Raises:
        ValueError: the two sides were not measured on the same items.
    """
    if target.items != checkpoint.items:
        raise ValueError(f"{target.items} items against {checkpoint.items}")
    found = np.concatenate(list(_replicates(target, checkpoint, replicates, seed)))
    value, reference = target.value(), checkpoint.value()
    return Comparison(
        _interval(value, found[:, 0], confidence),
        _interval(reference, found[:, 1], confidence),
        _interval(reference - value, found[:, 1] - found[:, 0], confidence),
    )


def _replicates(
    target: Statistic, checkpoint: Statistic, replicates: int, seed: int
) -> list[Floats]:
    source = np.random.default_rng(seed)
    items = target.items
    parts = [np.zeros((0, 2))]
    for start in range(0, replicates if items else 0, _AT_ONCE):
        count = min(_AT_ONCE, replicates - start)
        weights = np.zeros((count, items))
        for row in weights:
            row += np.bincount(source.integers(items, size=items), minlength=items)
        parts.append(np.stack([target.values(weights), checkpoint.values(weights)], axis=1))
    return parts


def _interval(value: float, found: Floats, confidence: float) -> Interval:
    defined = found[np.isfinite(found)]
    if not len(defined):
        return Interval(value, float("nan"), float("nan"))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))
