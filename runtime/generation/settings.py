"""Arguments of generation, as in HuggingFace ``generate``, and what they do to scores."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Optional, Sequence, Tuple, Union

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


def _setting(default: Any, meaning: str) -> Any:
    """A field that says what it means, for help."""
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class GenerationSettings:
    """How to search. Lengths count tokens, the prompt's included unless the name says ``new``."""

    max_length: Optional[int] = _setting(None, "most tokens of a text, its prompt's included")
    max_new_tokens: Optional[int] = _setting(None, "most tokens after the prompt (20)")
    min_length: Optional[int] = _setting(None, "fewest tokens of a text, its prompt's included")
    min_new_tokens: Optional[int] = _setting(None, "fewest tokens after the prompt")
    num_beams: int = _setting(1, "beams searched side by side; 1 takes the best token each time")
    num_return_sequences: int = _setting(1, "texts per image or question, best first")
    length_penalty: float = _setting(1.0, "beams: above 0 favours long texts, below 0 short ones")
    early_stopping: Union[bool, str] = _setting(
        False, "beams: true ends with the first that are complete, never searches on to the end"
    )
    do_sample: bool = _setting(False, "draw tokens at random, by their probability")
    temperature: float = _setting(1.0, "sampling: below 1 is more certain, above 1 more varied")
    top_k: int = _setting(50, "sampling: draw from so many best tokens; 0 for all")
    top_p: float = _setting(1.0, "sampling: draw from the best tokens of this probability in all")
    seed: Optional[int] = _setting(None, "sampling: the same seed draws the same texts")
    repetition_penalty: float = _setting(1.0, "above 1 makes tokens that are there less likely")
    no_repeat_ngram_size: int = _setting(0, "no run of so many tokens comes twice; 0 allows it")
    bad_words: Union[str, Sequence[str], None] = _setting(
        None, "a word or phrase that never comes; may be repeated"
    )
    bad_words_ids: Optional[Sequence[Sequence[int]]] = _setting(
        None, "runs of token ids that never come"
    )
    suppress_tokens: Optional[Sequence[int]] = _setting(None, "token ids that never come")
    output_scores: bool = _setting(
        False, "confidences even where a chip's net chooses tokens itself, which is slower"
    )
    draft_tokens: Optional[int] = _setting(
        None, "greedy search: tokens to draft for each pass, which checks them; 0 for none"
    )

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
        if not isinstance(self.bad_words, (str, list, tuple, type(None))):
            raise InputError(f"bad_words {self.bad_words!r:.60}: must be texts")
        for name, rows in (
            ("bad_words_ids", self.bad_words_ids),
            ("suppress_tokens", None if self.suppress_tokens is None else [self.suppress_tokens]),
        ):
            if rows is not None and not _are_ids(rows):
                kind = "lists of token ids" if name == "bad_words_ids" else "token ids"
                raise InputError(f"{name} {rows!r:.60}: must be {kind}, at least one")

    def check_ids(self, vocabulary_size: int) -> None:
        """Compares the ids that never come with the vocabulary.

        Raises:
            InputError: an id outside it, or words that a tokenizer did not make ids of.
        """
        if self.bad_words:
            raise InputError("bad_words: a task makes ids of them; pass bad_words_ids here")
        for name, rows in (
            ("bad_words_ids", self.bad_words_ids or ()),
            ("suppress_tokens", (self.suppress_tokens or (),)),
        ):
            highest = max((token for row in rows for token in row), default=0)
            if highest >= vocabulary_size:
                raise InputError(f"{name}: {highest} is outside 0..{vocabulary_size - 1}")

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


def _are_ids(rows: Any) -> bool:
    """Whether these are rows of token ids, at least one in each."""
    rows = rows if isinstance(rows, (list, tuple)) else ()
    return bool(rows) and all(
        isinstance(row, (list, tuple))
        and bool(row)
        and all(isinstance(one, (int, np.integer)) and one >= 0 for one in row)
        for row in rows
    )


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
        # An end token alone stays allowed, as in HuggingFace: a text could not end without.
        self._bad_words = [
            list(words) for words in settings.bad_words_ids or () if list(words) != [end_token_id]
        ]
        self._suppressed = list(settings.suppress_tokens or ())
        self._every_step = (
            settings.repetition_penalty != 1.0
            or settings.no_repeat_ngram_size > 0
            or bool(self._bad_words or self._suppressed)
        )
        self._active = self._every_step or shortest > prompt_tokens or settings.do_sample

    def concern(self, tokens: int) -> bool:
        """Whether the rules may change which token is best after so many tokens."""
        return self._every_step or tokens < self._shortest

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
        ban_words(sequences, scores, self._bad_words)
        if sequences.shape[1] < self._shortest:
            scores[:, self._end_token_id] = _NEVER
        scores[:, self._suppressed] = _NEVER
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


def ban_words(sequences: np.ndarray, scores: np.ndarray, words: Sequence[Sequence[int]]) -> None:
    """Bans every token that would complete one of these runs of tokens; in place."""
    for word in words:
        before = len(word) - 1
        if before <= sequences.shape[1]:
            begun = (sequences[:, sequences.shape[1] - before :] == word[:-1]).all(axis=1)
            scores[begun, word[-1]] = _NEVER


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
