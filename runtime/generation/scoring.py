"""Changes to next-token scores: repetition, n-grams, minimum length, temperature, top-k, top-p."""

from __future__ import annotations

import numpy as np

from ..files.number_formats import softmax
from .settings import GenerationSettings

_NEVER = np.float32(-np.inf)


class ScoreRules:
    """The rules of one row, applied in HuggingFace's order; float32 throughout, as there."""

    def __init__(
        self, settings: GenerationSettings, prompt_tokens: int, shortest: int, end_token_id: int
    ) -> None:
        self._settings = settings
        self._shortest = shortest
        self._end_token_id = end_token_id
        # Beams need one token besides the end token to go on with.
        self._keep = 2 if settings.num_beams > 1 else 1
        self._active = (
            settings.repetition_penalty != 1.0
            or settings.no_repeat_ngram_size > 0
            or shortest > prompt_tokens
            or settings.do_sample
        )

    def concern(self, tokens: int) -> bool:
        """Whether the rules may change which token is best after so many tokens."""
        settings = self._settings
        return (
            settings.repetition_penalty != 1.0
            or settings.no_repeat_ngram_size > 0
            or tokens < self._shortest
        )

    def __call__(self, sequences: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Scores ``[beams, vocabulary]`` of the token after ``sequences`` ``[beams, tokens]``."""
        if not self._active:
            return scores
        settings = self._settings
        scores = scores.copy()
        if settings.repetition_penalty != 1.0:
            penalise_repetition(sequences, scores, settings.repetition_penalty)
        if settings.no_repeat_ngram_size > 0:
            ban_repeated_ngrams(sequences, scores, settings.no_repeat_ngram_size)
        if sequences.shape[1] < self._shortest:
            scores[:, self._end_token_id] = _NEVER
        if settings.do_sample:
            if settings.temperature != 1.0:
                scores = scores / np.float32(settings.temperature)
            if settings.top_k:
                keep_top_k(scores, max(settings.top_k, self._keep))
            if settings.top_p < 1.0:
                keep_top_p(scores, settings.top_p, self._keep)
        return scores


def penalise_repetition(sequences: np.ndarray, scores: np.ndarray, penalty: float) -> None:
    """Divides positive scores of present tokens by ``penalty``, multiplies others; in place."""
    factor = np.float32(penalty)
    for row, sequence in enumerate(sequences):
        present = np.unique(sequence)
        values = scores[row, present]
        scores[row, present] = np.where(values < 0, values * factor, values / factor)


def ban_repeated_ngrams(sequences: np.ndarray, scores: np.ndarray, size: int) -> None:
    """Bans every token that would complete an n-gram of ``size`` tokens a second time; in place."""
    for row, sequence in enumerate(sequences):
        if len(sequence) < size:
            continue
        prefix = sequence[len(sequence) + 1 - size :]
        starts = np.arange(len(sequence) - size + 1)
        windows = sequence[starts[:, None] + np.arange(size)]
        matching = (windows[:, :-1] == prefix).all(axis=1)
        scores[row, windows[matching, -1]] = _NEVER


def keep_top_k(scores: np.ndarray, k: int) -> None:
    """Bans tokens scoring below the ``k``-th best; in place."""
    k = min(k, scores.shape[1])
    threshold = np.partition(scores, -k, axis=1)[:, -k]
    scores[scores < threshold[:, None]] = _NEVER


def keep_top_p(scores: np.ndarray, top_p: float, keep: int) -> None:
    """Bans the unlikely tail whose probability sums to at most 1 - ``top_p``; in place."""
    order = np.argsort(scores, axis=1, kind="stable")
    ascending = np.take_along_axis(scores, order, axis=1)
    removed = np.cumsum(softmax(ascending), axis=1) <= 1 - top_p
    removed[:, -keep:] = False
    banned = np.zeros_like(removed)
    np.put_along_axis(banned, order, removed, axis=1)
    scores[banned] = _NEVER
