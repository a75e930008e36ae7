"""Retrieval both ways: the rank of the best right item for every query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verify.answers.metrics.statistics import Sums, mean

RECALL_AT = (1, 5, 10)
#: Scores computed at once; bounds memory over large galleries.
_SCORES_AT_ONCE = 1 << 22

#: Per candidate of one query: how well the matching head says it fits; larger is better.
Reranked = Mapping[int, float]


def ranks(
    queries: NDArray[Any],
    gallery: NDArray[Any],
    right: Sequence[Sequence[int]],
    reranked: Sequence[Reranked] | None = None,
) -> NDArray[np.int64]:
    """Rank, from 1, of each query's best right gallery item; a tie counts against it.

    Ties count against, so that an artifact that answers everything alike finds nothing.

    Args:
        queries: features ``[queries, features]``.
        gallery: features ``[gallery, features]``; scores are dot products.
        right: gallery numbers that are right for each query, at least one.
        reranked: per query the candidates that the matching head judged; they go before all
            others, in the order of its scores.
    """
    found = np.zeros(len(queries), dtype=np.int64)
    at_once = max(1, _SCORES_AT_ONCE // max(1, len(gallery)))
    for start in range(0, len(queries), at_once):
        part = np.asarray(queries[start : start + at_once], dtype=np.float64)
        scores = part @ np.asarray(gallery, dtype=np.float64).T
        scores = np.where(np.isfinite(scores), scores, -np.inf)
        for row, line in enumerate(scores):
            query = start + row
            chosen = reranked[query] if reranked is not None else {}
            found[query] = _rank(_with_candidates(line, chosen), right[query])
    return found


def recall(found: NDArray[np.int64], at: int) -> Sums:
    """Share of queries with a right item among the first ``at``."""
    return mean(found <= at)


def best_candidates(scores: NDArray[Any], count: int) -> list[int]:
    """Numbers of the ``count`` largest scores, best first."""
    finite = np.where(np.isfinite(scores), scores, -np.inf)
    return [int(i) for i in np.argsort(-finite, kind="stable")[:count]]


def _with_candidates(scores: NDArray[np.float64], candidates: Reranked) -> NDArray[np.float64]:
    if not candidates:
        return scores
    raised = scores.copy()
    top = float(scores.max(initial=0.0, where=np.isfinite(scores)))
    # Distinct heights per distinct judgement: the head's own scale may exceed any cosine.
    judged = {c: s if np.isfinite(s) else -np.inf for c, s in candidates.items()}
    heights = {score: top + 1.0 + i for i, score in enumerate(sorted(set(judged.values())))}
    for candidate, score in judged.items():
        raised[candidate] = heights[score]
    return raised


def _rank(scores: NDArray[np.float64], right: Sequence[int]) -> int:
    mine = scores[list(right)]
    best = mine.max()
    return 1 + int((scores >= best).sum() - (mine >= best).sum())
