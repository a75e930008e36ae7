"""Generates token sequences: many prompts at once, each by its own search, over one decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Callable, List, Optional, Tuple
from typing import Sequence as Many

import numpy as np

from ..decoding.batching import StopSignal, Timings, stage
from ..errors import InputError
from ..files.manifests import TaskManifest, TextSettings
from ..files.number_formats import log_probability, log_softmax, softmax
from ..sessions.session import Session
from .settings import GenerationSettings, ScoreRules

#: Called with the row and each new token id, as soon as it is known.
OnToken = Callable[[int, int], None]
#: Score of a beam that must not win, as in HuggingFace; infinities would make NaN.
_LOST = np.float32(-1e9)


@dataclass(frozen=True)
class Sequence:
    """One generated sequence: the prompt's tokens, then the new ones, the end token included."""

    token_ids: "np.ndarray"
    #: length-normalised log-probability (beam search), or None
    score: Optional[float] = None
    #: ``end``, ``length``, ``cache``: the end token, the length asked for, the decoder's capacity;
    #: ``given`` where it was not generated
    finished: str = "end"
    #: log-probability of each new token, whatever rules of the search say; empty where not known
    log_probs: Tuple[float, ...] = ()
    #: the text that the tokens are of, where it was given
    text: Optional[str] = None


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens and the end token of one prompt's generation."""

    longest: int
    shortest: int
    end_token_id: int
    #: what sets ``longest``: ``length`` or ``cache``
    bound: str = "length"

    def finished(self, tokens: Many[int]) -> str:
        """Why a sequence ends where it does."""
        return "end" if tokens[-1] == self.end_token_id else self.bound


class Search(ABC):
    """The search for one prompt. ``beams`` rows of logits go in, ``beams`` next tokens come out."""

    beams = 1
    done = False

    @property
    def takes_tokens(self) -> bool:
        """Whether the next ``advance`` needs the token of the greatest logit only."""
        return False

    @abstractmethod
    def advance(self, logits: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Takes logits ``[beams, vocabulary]``; returns each beam's parent and next token.

        A search that ``takes_tokens`` takes the best tokens ``[beams]`` as well.
        """

    @abstractmethod
    def results(self) -> List[Sequence]:
        """The sequences found, best first."""


class SingleSearch(Search):
    """Greedy search or sampling: one running sequence."""

    _PARENT = np.zeros(1, dtype=np.int64)

    def __init__(
        self,
        prompt: List[int],
        settings: GenerationSettings,
        limits: Limits,
        generator: Optional[np.random.Generator],
    ) -> None:
        self._tokens = list(prompt)
        self._prompt_tokens = len(prompt)
        self._log_probs: List[float] = []
        self._all_logits = settings.output_scores
        self._limits = limits
        self._rules = ScoreRules(settings, len(prompt), limits.shortest, limits.end_token_id)
        self._generator = generator

    @property
    def takes_tokens(self) -> bool:
        """See ``Search``: not while a rule may change which token is best."""
        concerned = self._all_logits or self._rules.concern(len(self._tokens))
        return self._generator is None and not concerned

    def advance(self, logits: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """See ``Search``."""
        if logits.ndim == 1:
            token = int(logits[0])
        else:
            scores = self._rules(np.array([self._tokens], dtype=np.int64), logits)[0]
            if self._generator is None:
                token = int(scores.argmax())
            else:
                token = int(draw(softmax(scores), 1, self._generator)[0])
            self._log_probs.append(log_probability(logits[0], token))
        self._tokens.append(token)
        self.done = token == self._limits.end_token_id or len(self._tokens) >= self._limits.longest
        return self._PARENT, np.array([token], dtype=np.int64)

    def results(self) -> List[Sequence]:
        """See ``Search``."""
        tokens = np.array(self._tokens, dtype=np.int64)
        known = len(self._log_probs) == len(self._tokens) - self._prompt_tokens
        log_probs = tuple(self._log_probs) if known else ()
        return [Sequence(tokens, None, self._limits.finished(self._tokens), log_probs)]


class BeamSearch(Search):
    """Beam search or beam sampling, with HuggingFace's rules for scores and stopping."""

    def __init__(
        self,
        prompt: List[int],
        settings: GenerationSettings,
        limits: Limits,
        generator: Optional[np.random.Generator],
    ) -> None:
        beams = settings.num_beams
        self.beams = beams
        self._settings = settings
        self._limits = limits
        self._prompt_tokens = len(prompt)
        self._rules = ScoreRules(settings, len(prompt), limits.shortest, limits.end_token_id)
        self._generator = generator
        self._running = np.tile(np.array(prompt, dtype=np.int64), (beams, 1))
        # Only the first beam counts at first: all beams are equal.
        self._running_scores = np.full(beams, _LOST, dtype=np.float32)
        self._running_scores[0] = 0
        #: of each running beam's new tokens
        self._log_probs = np.zeros((beams, 0), dtype=np.float32)
        self._found: List[Tuple[np.float32, bool, np.ndarray, np.ndarray]] = [
            (_LOST, False, self._running[0], self._log_probs[0]) for _ in range(beams)
        ]
        self._improvable = True

    def advance(self, logits: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """See ``Search``."""
        beams, vocabulary = logits.shape
        every = log_softmax(logits)
        scores = self._rules(self._running, every) + self._running_scores[:, None]
        flat = scores.reshape(-1)
        candidates = 2 * beams
        if self._generator is None:
            chosen = largest(flat, candidates)
        else:
            chosen = draw(softmax(flat), candidates, self._generator)
            if len(chosen) < candidates:
                # Too few tokens have any probability: go on with impossible ones, which never win.
                rest = largest(flat, candidates * 2)
                chosen = np.concatenate([chosen, rest[~np.isin(rest, chosen)]])[:candidates]
        values = flat[chosen]
        parents, tokens = chosen // vocabulary, chosen % vocabulary
        sequences = np.concatenate([self._running[parents], tokens[:, None]], axis=1)
        log_probs = np.concatenate([self._log_probs[parents], every[parents, tokens, None]], axis=1)
        length = sequences.shape[1]
        ended = (tokens == self._limits.end_token_id) | (length >= self._limits.longest)
        self._collect(sequences, log_probs, values, ended)

        open_values = values + ended.astype(np.float32) * _LOST
        following = largest(open_values, beams)
        self._running, self._log_probs = sequences[following], log_probs[following]
        self._running_scores = open_values[following]
        self._update_stopping(length, bool(ended.all()))
        return parents[following], tokens[following]

    def _collect(
        self, sequences: np.ndarray, log_probs: np.ndarray, values: np.ndarray, ended: np.ndarray
    ) -> None:
        # Only the best `beams` candidates may end; the others are there to keep the search going.
        counted = ended & (np.arange(len(ended)) < self.beams)
        normalised = values / np.float32(log_probs.shape[1] ** self._settings.length_penalty)
        full = all(finished for _, finished, *_ in self._found)
        if full and self._settings.early_stopping is True:
            normalised = normalised + _LOST
        if not self._improvable:
            normalised = normalised + _LOST
        normalised = normalised + (~counted).astype(np.float32) * _LOST
        merged = self._found + [
            (normalised[i], bool(counted[i]), sequences[i], log_probs[i])
            for i in range(len(counted))
        ]
        best = largest(np.array([score for score, *_ in merged], dtype=np.float32), self.beams)
        self._found = [merged[i] for i in best]

    def _update_stopping(self, length: int, nothing_open: bool) -> None:
        settings = self._settings
        if settings.early_stopping == "never" and settings.length_penalty > 0.0:
            hypothetical = self._limits.longest - self._prompt_tokens
        else:
            hypothetical = length - self._prompt_tokens
        best_possible = self._running_scores[0] / np.float32(hypothetical**settings.length_penalty)
        worst_found = min(score for score, *_ in self._found)
        self._improvable = self._improvable and any(
            best_possible > (worst_found if finished else _LOST) for _, finished, *_ in self._found
        )
        full = all(finished for _, finished, *_ in self._found)
        self.done = (
            not self._improvable or nothing_open or (full and settings.early_stopping is True)
        )

    def results(self) -> List[Sequence]:
        """See ``Search``."""
        wanted = self._found[: self._settings.num_return_sequences]
        return [
            Sequence(
                tokens,
                float(score),
                self._limits.finished(tokens.tolist()),
                tuple(log_probs.tolist()),
            )
            for score, _, tokens, log_probs in wanted
        ]


def start_search(
    prompt: List[int], settings: GenerationSettings, limits: Limits, row: int
) -> Search:
    """The search that the settings ask for; ``row`` makes sampled rows differ under one seed."""
    generator = None
    if settings.do_sample:
        generator = np.random.default_rng(None if settings.seed is None else [settings.seed, row])
    kind = BeamSearch if settings.num_beams > 1 else SingleSearch
    return kind(prompt, settings, limits, generator)


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` largest values, best first; equal values in order of index."""
    count = min(count, len(values))
    if count < len(values):
        threshold = np.partition(values, -count)[-count]
        indices = np.flatnonzero(values >= threshold)
    else:
        indices = np.arange(len(values))
    order = np.argsort(-values[indices], kind="stable")[:count]
    chosen: np.ndarray = indices[order]
    return chosen


def draw(probabilities: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """``count`` different indices drawn with these probabilities."""
    weights = probabilities.astype(np.float64)
    count = min(count, int(np.count_nonzero(weights)))
    return generator.choice(len(weights), size=count, replace=False, p=weights / weights.sum())


def generate(
    session: Session,
    manifest: TaskManifest,
    cross: Any,
    prompts: Many[Many[int]],
    settings: GenerationSettings,
    *,
    given: Optional[Many[Search]] = None,
    on_token: Optional[OnToken] = None,
    timings: Optional[Timings] = None,
    stop: Optional[StopSignal] = None,
) -> List[List[Sequence]]:
    """Generates from every prompt; row i attends to context i of ``cross``.

    A row's answer does not depend on the other rows: lengths, penalties and n-grams count its own
    tokens only.

    Args:
        session: the ``text_decoder``.
        manifest: token ids and dimensions.
        cross: keys and values to attend to (``Session.cross_states``), one context per prompt.
        prompts: token ids, start token first.
        settings: how to search.
        given: one search per prompt, instead of those that the settings ask for.
        on_token: streams tokens; greedy search and sampling of one sequence only.
        timings: collects the time of the first pass and of the steps.
        stop: ends the generation at its next step.

    Returns:
        for each prompt its ``num_return_sequences`` sequences, best first.

    Raises:
        InputError: a prompt too long for the lengths asked for, or streaming with beams.
    """
    several = settings.num_beams > 1 or settings.num_return_sequences > 1
    if on_token is not None and (several or given is not None):
        raise InputError(
            "streaming: works with num_beams 1 and num_return_sequences 1 only, without answers"
        )
    # Beams return several sequences of one search; sampling needs one search per sequence.
    repeats = settings.num_return_sequences if settings.num_beams == 1 else 1
    settings.check_ids(manifest.text.vocabulary_size)
    limits = [_limits(len(prompt), settings, manifest, session) for prompt in prompts]
    searches = list(given or ()) or [
        start_search(list(prompt), settings, limits[row], row * repeats + copy)
        for row, prompt in enumerate(prompts)
        for copy in range(repeats)
    ]
    # Where each search's beams lie among the rows of the decoder; all start as their prompt's row.
    slots = [
        np.full(search.beams, index // repeats, dtype=np.int64)
        for index, search in enumerate(searches)
    ]
    with closing(session.start_run(manifest.dimensions, cross)) as run:
        run.tokens_suffice = all(search.takes_tokens for search in searches)
        with stage("first_pass", len(prompts), timings, stop):
            logits = run.start(prompts, range(len(prompts)))
        active = list(range(len(searches)))
        while True:
            parents, tokens, active = _advance(searches, slots, active, logits, on_token)
            if not active:
                break
            run.tokens_suffice = all(searches[index].takes_tokens for index in active)
            with stage("step", len(tokens), timings, stop):
                logits = run.step(parents, tokens)
    found = [search.results() for search in searches]
    return [
        [sequence for part in found[row * repeats : (row + 1) * repeats] for sequence in part]
        for row in range(len(prompts))
    ]


def _advance(
    searches: List[Search],
    slots: List[np.ndarray],
    active: List[int],
    logits: np.ndarray,
    on_token: Optional[OnToken],
) -> Tuple[np.ndarray, np.ndarray, List[int]]:
    parents: List[np.ndarray] = []
    tokens: List[np.ndarray] = []
    remaining = []
    rows = 0
    for index in active:
        search = searches[index]
        beam_parents, beam_tokens = search.advance(logits[slots[index]])
        if on_token is not None:
            on_token(index, int(beam_tokens[0]))
        if search.done:
            continue
        parents.append(slots[index][beam_parents])
        tokens.append(beam_tokens)
        slots[index] = np.arange(rows, rows + search.beams)
        rows += search.beams
        remaining.append(index)
    if not remaining:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, []
    return np.concatenate(parents), np.concatenate(tokens), remaining


def _limits(
    prompt_tokens: int, settings: GenerationSettings, manifest: TaskManifest, session: Session
) -> Limits:
    text = manifest.text
    capacity = session.capacity(text.maximum_positions)
    longest, shortest = settings.lengths(prompt_tokens, text.maximum_positions, capacity)
    bound = "cache" if longest > capacity else "length"
    return Limits(min(longest, capacity), shortest, text.end_token_id, bound)


def padded_sequences(
    found: List[List[Sequence]], text: TextSettings, settings: GenerationSettings
) -> np.ndarray:
    """Sequences as one array ``[rows, tokens]`` int64, filled as HuggingFace fills shorter ones."""
    rows = [sequence.token_ids for sequences in found for sequence in sequences]
    fill = text.pad_token_id
    if settings.num_beams > 1 and fill == 0:
        # There, a pad id of 0 counts as absent in beam search and the end token takes its place.
        fill = text.end_token_id
    padded = np.full((len(rows), max(len(row) for row in rows)), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded
