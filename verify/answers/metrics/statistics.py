"""Metrics as functions of item weights: one definition serves the figure and its bootstrap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Statistic(ABC):
    """A metric over items; an item's weight says how often it counts (all 1: the plain metric)."""

    #: how many items were measured: the length of a weight vector
    items: int

    @abstractmethod
    def values(self, weights: NDArray[Any]) -> Floats:
        """The metric under each row of weights ``[replicates, items]``; returns ``[replicates]``.

        NaN where a row leaves nothing to measure.
        """

    def value(self) -> float:
        """The plain metric."""
        return float(self.values(np.ones((1, self.items)))[0])


class Sums(Statistic):
    """A metric of weighted sums of per-item counts: means, ratios, corpus BLEU."""

    def __init__(self, counts: NDArray[Any], formula: Callable[[Floats], Floats]) -> None:
        """``counts`` is ``[items, n]``; ``formula`` turns sums ``[replicates, n]`` into values."""
        self._counts = np.asarray(counts, dtype=np.float64)
        self._formula = formula
        self.items = len(self._counts)

    def values(self, weights: NDArray[Any]) -> Floats:
        """See ``Statistic.values``."""
        return self._formula(np.asarray(weights, dtype=np.float64) @ self._counts)


def share(sums: Floats) -> Floats:
    """First sum over second, e.g. right answers over questions; NaN over nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Floats = sums[:, 0] / sums[:, 1]
    return result


def mean(scores: NDArray[Any]) -> Sums:
    """The mean of one score per item."""
    values = np.asarray(scores, dtype=np.float64)
    return Sums(np.stack([values, np.ones(len(values))], axis=1), share)


class AreaUnderCurve(Statistic):
    """Area under the ROC curve; an item may own several scored pairs, which count together.

    The probability that a positive pair scores above a negative one, a tie counting half
    (Hanley and McNeil, 1982).
    """

    def __init__(
        self, scores: NDArray[Any], positive: NDArray[Any], owner: NDArray[Any], items: int
    ) -> None:
        """``scores``, ``positive`` and ``owner`` (the item) are ``[pairs]``."""
        order = np.argsort(np.asarray(scores, dtype=np.float64), kind="stable")
        ordered = np.asarray(scores, dtype=np.float64)[order]
        #: number of the group of equal scores, per pair in order of score
        self._group = np.concatenate([[0], np.cumsum(np.diff(ordered) != 0)]).astype(np.int64)
        self._group = self._group[: len(ordered)]
        self._groups = int(self._group[-1]) + 1 if len(ordered) else 0
        self._positive = np.asarray(positive, dtype=bool)[order]
        self._owner = np.asarray(owner, dtype=np.int64)[order]
        self._finite = bool(np.isfinite(ordered).all())
        self.items = items

    def values(self, weights: NDArray[Any]) -> Floats:
        """See ``Statistic.values``; NaN without both kinds of pairs, or with a score not finite."""
        rows = np.asarray(weights, dtype=np.float64)
        return np.array([self._one(row) for row in rows])

    def _one(self, weights: Floats) -> float:
        of_pair = weights[self._owner]
        above = np.bincount(
            self._group, weights=of_pair * self._positive, minlength=self._groups
        ).astype(np.float64)
        below = np.bincount(
            self._group, weights=of_pair * ~self._positive, minlength=self._groups
        ).astype(np.float64)
        pairs = above.sum() * below.sum()
        if not self._finite or pairs == 0.0:
            return float("nan")
        lower = np.cumsum(below) - below
        return float((above * (lower + below / 2)).sum() / pairs)
