"""Scores texts that are given rather than generated: how likely is each, and which is best?

A decoder is fed the given tokens one by one, so every backend that generates can score.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Tuple
from typing import Sequence as Many

import numpy as np

from ..files.number_formats import log_softmax
from .generate import Search, Sequence

#: BLIP's own code computes the loss of an answer with this share spread over the vocabulary.
LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class GivenText:
    """A text, and the tokens that it adds to a prompt, the end token included."""

    text: str
    token_ids: Tuple[int, ...]


@dataclass(frozen=True)
class Given:
    """What may follow each prompt of a call."""

    #: per prompt; one list alone is that of every prompt
    texts: Tuple[Tuple[GivenText, ...], ...]
    #: rank, and look closely at so many whose first token is most likely; None: score each
    candidates: Optional[int] = None
    #: best texts to return where they are ranked
    best: int = 1

    @property
    def width(self) -> int:
        """Most rows that one prompt becomes."""
        widest = max(map(len, self.texts), default=1)
        return max(1, widest if self.candidates is None else min(widest, self.candidates))

    def part(self, start: int, end: int) -> "Given":
        """What may follow these of the prompts."""
        return self if len(self.texts) == 1 else replace(self, texts=self.texts[start:end])

    def searches(self, prompts: Many[Many[int]], first: int) -> List[Search]:
        """The searches of some prompts, the first of which is number ``first`` of the call."""
        shared = len(self.texts) == 1
        return [
            GivenSearch(prompt, self.texts[0 if shared else first + row], self)
            for row, prompt in enumerate(prompts)
        ]


class GivenSearch(Search):
    """Follows the given texts of one prompt; those that begin alike share a row."""

    def __init__(self, prompt: Many[int], texts: Many[GivenText], given: Given) -> None:
        self._prompt = list(prompt)
        self._texts = texts
        self._given = given
        self._depth = 0
        #: the row of each text that goes on
        self._rows: Dict[int, int] = dict.fromkeys(range(len(texts)), 0)
        self._log_probs: List[List[float]] = [[] for _ in texts]
        self._means: List[List[float]] = [[] for _ in texts]

    def advance(self, logits: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """See ``Search``."""
        every = log_softmax(logits)
        means = every.mean(axis=1)
        for text, row in self._rows.items():
            token = self._texts[text].token_ids[self._depth]
            self._log_probs[text].append(float(every[row, token]))
            self._means[text].append(float(means[row]))
        if self._depth == 0 and self._given.candidates is not None:
            likely = sorted(self._rows, key=lambda text: -self._log_probs[text][0])
            self._rows = dict.fromkeys(sorted(likely[: self._given.candidates]), 0)
            self._kept = list(self._rows)
        following: Dict[Tuple[int, int], int] = {}
        going: Dict[int, int] = {}
        for text, row in self._rows.items():
            tokens = self._texts[text].token_ids
            if self._depth + 1 < len(tokens):
                going[text] = following.setdefault((row, tokens[self._depth]), len(following))
        self._rows = going
        self._depth += 1
        self.beams, self.done = len(following), not following
        parents = np.array([row for row, _ in following], dtype=np.int64)
        return parents, np.array([token for _, token in following], dtype=np.int64)

    def results(self) -> List[Sequence]:
        """See ``Search``: the best if they are ranked, else every text in its place."""
        if self._given.candidates is None:
            return [self._found(text, None) for text in range(len(self._texts))]
        scores = {text: self._score(text) for text in self._kept}
        best = sorted(scores, key=lambda text: -scores[text])[: self._given.best]
        return [self._found(text, scores[text]) for text in best]

    def _score(self, text: int) -> float:
        """BLIP's own: minus the loss, which is smoothed, summed over the tokens."""
        log_probs, means = sum(self._log_probs[text]), sum(self._means[text])
        return (1 - LABEL_SMOOTHING) * log_probs + LABEL_SMOOTHING * means

    def _found(self, text: int, score: Optional[float]) -> Sequence:
        given = self._texts[text]
        tokens = np.array([*self._prompt, *given.token_ids], dtype=np.int64)
        return Sequence(tokens, score, "given", tuple(self._log_probs[text]), given.text)
