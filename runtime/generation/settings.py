"""Arguments of generation, as in HuggingFace ``generate``, and what they do to scores."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Optional, Tuple, Union

import numpy as np

from ..errors import InputError
from ..files.number_formats import softmax

#: New tokens when neither max_length nor max_new_tokens is given, as in HuggingFace.
DEFAULT_NEW_TOKENS = 20
#: Tokens of a question or description, the first and last one included, after which BLIP's own
#: code cuts it.
TRUNCATED_TOKENS = 35
#: File of a task's folder that says what mostly follows which tokens (``drafts``).
DRAFT_TABLE = "processor/drafts.npy"
_NEVER = np.float32(-np.inf)


@dataclass(frozen=True)
class GenerationSettings:
    """How to search. Lengths count tokens, the prompt's included unless the name says ``new``."""

    max_length: Optional[int] = None
    max_new_tokens: Optional[int] = None
    min_length: Optional[int] = None
    min_new_tokens: Optional[int] = None
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: Union[bool, str] = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    seed: Optional[int] = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    #: tokens to draft for each pass of greedy search, which checks them; 0: none; None: as many as
    #: are worth it, where the artifacts have a table of drafts
    draft_tokens: Optional[int] = None

    @property
    def drafts(self) -> bool:
        """Whether tokens may be drafted: not for searches that keep more than the best token."""
        return self.num_beams == 1 and not self.do_sample and self.draft_tokens != 0

    @classmethod
    def from_arguments(cls, **arguments: Any) -> "GenerationSettings":
        """Settings from keyword arguments; None means the default.

        Raises:
            InputError: an unknown name or an impossible value.
        """
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(arguments) - known)
        if unknown:
            raise InputError(
                f"generation argument '{unknown[0]}': unknown; choose from "
                + ", ".join(sorted(known))
            )
        return cls(**{name: value for name, value in arguments.items() if value is not None})

    def __post_init__(self) -> None:
        for name, lowest in _WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
                raise InputError(f"{name} {value!r}: must be a whole number of at least {lowest}")
        for name in ("length_penalty", "temperature", "top_p", "repetition_penalty"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
                raise InputError(f"{name} {value!r}: must be a number")
        if self.temperature <= 0:
            raise InputError(f"temperature {self.temperature}: must be above 0")
        if not 0 <= self.top_p <= 1:
            raise InputError(f"top_p {self.top_p}: must be between 0 and 1")
        if self.repetition_penalty <= 0:
            raise InputError(f"repetition_penalty {self.repetition_penalty}: must be above 0")
        if self.early_stopping not in (True, False, "never"):
            raise InputError(f"early_stopping {self.early_stopping!r}: True, False or 'never'")
        self._check_return_sequences()

    def _check_return_sequences(self) -> None:
        wanted = self.num_return_sequences
        if wanted > 1 and self.num_beams == 1 and not self.do_sample:
            raise InputError(f"num_return_sequences {wanted}: needs num_beams above 1 or do_sample")
        if self.num_beams > 1 and wanted > self.num_beams:
            raise InputError(
                f"num_return_sequences {wanted}: must not exceed num_beams ({self.num_beams})"
            )

    def lengths(self, prompt_tokens: int, maximum_positions: int, capacity: int) -> Tuple[int, int]:
        """Largest and smallest total length in tokens asked for, for one prompt.

        Args:
            prompt_tokens: length of the prompt, start token included.
            maximum_positions: positions the checkpoint knows.
            capacity: longest sequence the decoder can produce.

        Raises:
            InputError: the prompt leaves no room.
        """
        if self.max_new_tokens is not None:
            longest = prompt_tokens + self.max_new_tokens
        elif self.max_length is not None:
            longest = self.max_length
        else:
            longest = min(prompt_tokens + DEFAULT_NEW_TOKENS, maximum_positions)
        if prompt_tokens >= longest:
            raise InputError(
                f"max_length {longest}: the prompt alone has {prompt_tokens} tokens; "
                "raise it or set max_new_tokens"
            )
        if prompt_tokens >= capacity:
            raise InputError(
                f"prompt of {prompt_tokens} tokens: this artifact holds {capacity - 1}; shorten it"
            )
        shortest = self.min_length or 0
        if self.min_new_tokens:
            shortest = max(shortest, prompt_tokens + self.min_new_tokens)
        return longest, shortest


_WHOLE_NUMBERS = {
    "max_length": 1,
    "max_new_tokens": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "top_k": 0,
    "seed": 0,
    "no_repeat_ngram_size": 0,
    "draft_tokens": 0,
}


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
