"""Decodes with arrays in this process's memory, over a growing or a fixed-size cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import ArtifactError
from ..files.manifests import Dimensions, Net
from ..files.nets import FIRST_LOGIT
from ..sessions.session import Arrays, DecoderRun, Session
from .batching import (
    ANY_DRAFTS,
    DYNAMIC_DRAFTS,
    TOKENS_PER_PASS,
    ArrayDict,
    TokenGrid,
    consecutive,
    row_groups,
    run_finite,
    run_rows,
)
from .batching import CROSS_MASK as CROSS_MASK
from .batching import additive as additive
from .caches import FixedCache, GrowingCache

#: Outputs of a decoder that chooses the next token itself: its id and its logit, ``[rows, 1]``.
NEXT_TOKEN = "next_token"  # noqa: S105 - the name of a tensor
NEXT_LOGIT = "next_logit"


@dataclass(frozen=True)
class CrossStates:
    """What the decoder attends to: one context per image (caption) or question (vqa)."""

    #: ``cross.{l}.key|value``, each ``[contexts, encoder tokens, heads, head size]``
    arrays: ArrayDict
    #: 1 for real encoder tokens, 0 for padding ``[contexts, encoder tokens]``; None: all real
    mask: Optional[np.ndarray] = None

    @property
    def contexts(self) -> int:
        """Number of contexts."""
        return int(next(iter(self.arrays.values())).shape[0])

    @classmethod
    def of(cls, session: Session, feeds: Arrays, mask: Optional[np.ndarray]) -> "CrossStates":
        """What a session's net makes of ``feeds``."""
        outputs = run_rows(session, dict(feeds))
        made = {name: array for name, array in outputs.items() if name.startswith("cross.")}
        return cls(made, mask)

    def select(self, contexts: np.ndarray) -> "CrossStates":
        """These contexts in this order; no copy where they are one consecutive run."""
        index = consecutive(contexts)
        return CrossStates(
            {name: array[index] for name, array in self.arrays.items()},
            None if self.mask is None else self.mask[index],
        )


class GrowingRun(DecoderRun):
    """All rows in one call, for nets with dynamic shapes.

    A row that has ended keeps its place until half of the rows have: closing the gap at once would
    copy the cross keys and values of all others, which costs far more than a dead row.
    """

    def __init__(self, session: Session, dimensions: Dimensions, cross: CrossStates) -> None:
        self._session = session
        self._dimensions = dimensions
        self._cross = cross
        net = session.net(None)
        self._wants_mask = net.input(CROSS_MASK) is not None
        if net.first_logit is not None:
            self.most_drafts = ANY_DRAFTS

    def start(self, prompts: Sequence[Sequence[int]], contexts: Sequence[int]) -> np.ndarray:
        """See ``DecoderRun``; shorter prompts are padded on the left, and the padding masked."""
        rows, longest = len(prompts), max(len(prompt) for prompt in prompts)
        ids = np.zeros((rows, longest), dtype=np.int64)
        held = np.zeros((rows, longest), dtype=bool)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
            held[row, longest - len(prompt) :] = True
        positions = np.maximum(np.cumsum(held, axis=1) - 1, 0)
        self._tokens = TokenGrid(held, positions[:, -1])
        causal = np.tril(np.ones((longest, longest), dtype=bool))
        self._cache = GrowingCache(self._dimensions, rows)
        self._live = np.arange(rows)
        self._attend(np.array(contexts, dtype=np.int64))
        return self._call(ids, positions, causal[None] & held[:, None, :], 1)

    def begin(self, contexts: Sequence[int]) -> None:
        """See ``DecoderRun``."""
        rows = len(contexts)
        self._tokens = TokenGrid.empty(rows)
        self._cache = GrowingCache(self._dimensions, rows)
        self._live = np.arange(rows)
        self._attend(np.array(contexts, dtype=np.int64))

    def check(self, parents: np.ndarray, tokens: Sequence[Sequence[int]]) -> List[np.ndarray]:
        """See ``DecoderRun``."""
        self._move(self._live[parents])
        call = self._tokens.add(self._live, tokens)
        new = call[0].shape[1]
        logits = self._call(*call, new).reshape(self._cache.rows, new, -1)
        return [logits[place, : len(row)] for place, row in zip(self._live, tokens)]

    def usual_drafts(self, rows: int) -> int:
        """See ``DecoderRun``; a pass over many rows takes as long as its tokens are many."""
        return DYNAMIC_DRAFTS if rows == 1 else 0

    def keep(self, counts: Sequence[int]) -> None:
        """See ``DecoderRun``; what a row loses stays in the cache, and is masked."""
        self._tokens.keep(self._live, counts)

    def _move(self, parents: np.ndarray) -> None:
        """Gives each new row a place among the places of its context, or lays all rows out anew."""
        rows, contexts = self._cache.rows, self._contexts[parents]
        index = np.arange(rows)
        places = _places(contexts, self._contexts) if 2 * len(parents) > rows else None
        if places is None:
            self._live, index = np.arange(len(parents)), parents
            self._attend(contexts)
        else:
            self._live = places
            index[places] = parents
        if not np.array_equal(index, np.arange(rows)):
            self._cache.select(index)
            self._tokens.select(index)

    def _attend(self, contexts: np.ndarray) -> None:
        self._contexts = contexts
        # Rows of one image share its keys and values: a batch of one broadcasts.
        shared = bool((contexts == contexts[0]).all())
        self._selected = self._cross.select(contexts[:1] if shared else contexts)

    def _call(
        self, ids: np.ndarray, positions: np.ndarray, allowed: np.ndarray, logits: int
    ) -> np.ndarray:
        feeds: ArrayDict = {
            FIRST_LOGIT: np.array(-logits),
            "input_ids": ids,
            "position_ids": positions,
            "self_attention_mask": additive(allowed)[:, None],
        }
        feeds.update(self._cache.feeds())
        feeds.update(self._selected.arrays)
        if self._wants_mask:
            feeds[CROSS_MASK] = cross_mask(self._selected, ids.shape[1])
        outputs = run_finite(self._session, feeds)
        self._cache.append(outputs)
        return outputs["logits"]


def _places(wanted: np.ndarray, contexts: np.ndarray) -> Optional[np.ndarray]:
    """For each wanted context its own index in ``contexts``, or None if there are too few."""
    free: Dict[int, List[int]] = {}
    for index in range(len(contexts) - 1, -1, -1):
        free.setdefault(int(contexts[index]), []).append(index)
    places = []
    for context in wanted:
        left = free.get(int(context))
        if not left:
            return None
        places.append(left.pop())
    return np.array(places, dtype=np.int64)


class FixedRun(DecoderRun):
    """For nets compiled for fixed lengths: ``first_pass`` and ``step``, row after row.

    Prompts are left-padded to the first pass's length; longer ones are fed in several calls. A step
    takes several rows at once where it was compiled for that.
    """

    def __init__(self, session: Session, dimensions: Dimensions, cross: CrossStates) -> None:
        self._session = session
        self._cross = cross
        self._dimensions = dimensions
        self._step = session.net("step")
        self._first = session.nets.get("first_pass", self._step)
        self._slots = fixed_axis(self._step, "past.0.key", 1)
        self._first_tokens = fixed_axis(self._first, "self_attention_mask", 2)
        self._rows = self._step.lengths("batch") or (1,)
        if self._first.answers_everywhere:
            self.most_drafts = self._first_tokens - 1

    def start(self, prompts: Sequence[Sequence[int]], contexts: Sequence[int]) -> np.ndarray:
        """See ``DecoderRun``."""
        self.begin(contexts)
        return np.concatenate(
            [self._prompt(row, list(prompt)) for row, prompt in enumerate(prompts)]
        )

    def step(self, parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """See ``DecoderRun``."""
        self._follow(parents)
        logits, start = [], 0
        for count in row_groups(len(tokens), self._rows):
            rows = range(start, start + count)
            logits.append(self._call(self._step, rows, [[int(tokens[row])] for row in rows]))
            start += count
        return np.concatenate(logits)

    def begin(self, contexts: Sequence[int]) -> None:
        """See ``DecoderRun``."""
        self._contexts = np.array(contexts, dtype=np.int64)
        self._cache = FixedCache(self._dimensions, len(contexts), self._slots)

    def check(self, parents: np.ndarray, tokens: Sequence[Sequence[int]]) -> List[np.ndarray]:
        """See ``DecoderRun``."""
        self._follow(parents)
        self._before = self._cache.lengths.copy()
        return [self._drafted(row, list(given)) for row, given in enumerate(tokens)]

    def usual_drafts(self, rows: int) -> int:  # noqa: ARG002 - rows are fed one by one
        """See ``DecoderRun``."""
        return worth_of_drafts(self._first, self._step)

    def keep(self, counts: Sequence[int]) -> None:
        """See ``DecoderRun``; what a row loses is overwritten."""
        self._cache.lengths = self._before + np.array(counts, dtype=np.int64)

    def _follow(self, parents: np.ndarray) -> None:
        if not np.array_equal(parents, np.arange(len(self._contexts))):
            self._cache.select(parents)
            self._contexts = self._contexts[parents]

    def _drafted(self, row: int, tokens: List[int]) -> np.ndarray:
        rows = range(row, row + 1)
        if len(tokens) == 1:
            return self._call(self._step, rows, [tokens])
        return self._call(self._first, rows, [tokens], drafted=True)

    def _prompt(self, row: int, prompt: List[int]) -> np.ndarray:
        logits = np.zeros(0)
        for start, end in prompt_cuts(len(prompt), self._first_tokens):
            net = self._step if end - start == 1 else self._first
            logits = self._call(net, range(row, row + 1), [prompt[start:end]])
        return logits

    def _call(
        self, net: Net, rows: range, tokens: List[List[int]], *, drafted: bool = False
    ) -> np.ndarray:
        """Feeds equally many tokens to each of some rows, in the fastest stage that fits."""
        lengths, real = [int(self._cache.lengths[row]) for row in rows], len(tokens[0])
        stage = fitting_stage(net, len(rows), real, max(lengths))
        length = fixed_axis(stage, "self_attention_mask", 2)
        slots = fixed_axis(stage, "past.0.key", 1)
        context = self._cross.select(self._contexts[rows.start : rows.stop])
        if drafted:
            tokens = [filled(row, length) for row in tokens]
        feeds = fixed_calls(tokens, length, lengths, slots, real)
        feeds.update(self._cache.feeds(rows, slots))
        feeds.update(context.arrays)
        if net.input(CROSS_MASK) is not None:
            feeds[CROSS_MASK] = cross_mask(context, length)
        outputs = run_finite(self._session, feeds, net.name)
        self._cache.append(rows, outputs, len(tokens[0]))
        chosen = self.tokens_suffice and NEXT_TOKEN in outputs
        answers = tokens_of(outputs[NEXT_TOKEN]) if chosen else outputs["logits"]
        return answers_of(stage, answers, real, drafted=drafted)


def cross_mask(cross: CrossStates, tokens: int) -> np.ndarray:
    """Additive mask over encoder tokens, ``[contexts, 1, tokens, encoder tokens]``."""
    encoder_tokens = next(iter(cross.arrays.values())).shape[1]
    mask = np.ones((cross.contexts, encoder_tokens)) if cross.mask is None else cross.mask
    wide = np.broadcast_to(mask[:, None, None, :] != 0, (len(mask), 1, tokens, mask.shape[1]))
    return additive(wide)


def tokens_of(array: np.ndarray) -> np.ndarray:
    """Token ids ``[rows]`` of a decoder's own choice."""
    return array.reshape(-1).astype(np.int64)


def worth_of_drafts(first: Net, step: Net) -> int:
    """Drafted tokens for each pass of nets of fixed lengths: as many as there is room for.

    None where the compiler's estimates say that such a pass takes longer than the steps it saves.
    """
    taken, saved = first.latency_ms, step.latency_ms
    if taken is not None and saved is not None and taken > TOKENS_PER_PASS * saved:
        return 0
    return fixed_axis(first, "self_attention_mask", 2) - 1


def answers_of(stage: Net, answers: np.ndarray, real: int, *, drafted: bool) -> np.ndarray:
    """The answers that a call is for: of each token that may be drafted, else of the last ones."""
    if drafted:
        return answers[:real]
    return answers[-1:] if stage.answers_everywhere else answers


def filled(tokens: List[int], length: int) -> List[int]:
    """Tokens to check, and copies of the last one for a net of fixed length: nobody reads them."""
    return tokens + tokens[-1:] * (length - len(tokens))


def fitting_stage(net: Net, rows: int, tokens: int, past: int) -> Net:
    """The fastest stage of a decoder's net for so many rows, new tokens each, and past ones."""
    if not net.variants:
        return net
    # Beyond the last slot nothing is read: the rows of a full cache are all there is.
    slots = min(past, net.lengths("past_tokens")[-1])
    return net.fastest(batch=rows, text_tokens=tokens, past_tokens=slots)


def fixed_calls(
    tokens: List[List[int]], length: int, pasts: Sequence[int], slots: int, real: int
) -> ArrayDict:
    """``fixed_call`` of several rows, one below the other."""
    calls = [fixed_call(row, length, past, slots, real) for row, past in zip(tokens, pasts)]
    return {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}


def prompt_cuts(tokens: int, most: int) -> List[Tuple[int, int]]:
    """Start and end of each call that feeds a prompt; the first one takes the remainder."""
    first = tokens % most or most
    cuts = [0, *range(first, tokens + 1, most)]
    return list(zip(cuts, cuts[1:]))


def fixed_call(
    tokens: List[int], length: int, past: int, slots: int, real: Optional[int] = None
) -> ArrayDict:
    """Ids, positions and self mask of a call of fixed length over a cache of ``slots`` rows.

    Args:
        tokens: at most ``length`` ids, padded on the left; the padding is masked.
        length: tokens per call of the net.
        past: rows of the cache in use.
        slots: rows of the cache.
        real: how many of them count (all); those after them stand at the last one's position.
    """
    pads = length - len(tokens)
    ids = np.zeros((1, length), dtype=np.int64)
    ids[0, pads:] = tokens
    positions = np.zeros((1, length), dtype=np.int64)
    positions[0, pads:] = past + np.minimum(np.arange(len(tokens)), (real or len(tokens)) - 1)
    allowed = np.zeros((1, length, slots + length), dtype=bool)
    allowed[:, pads:, :past] = True
    allowed[:, :, slots:] = np.tril(np.ones((length, length), dtype=bool))
    allowed[:, pads:, slots : slots + pads] = False
    return {
        "input_ids": ids,
        "position_ids": positions,
        "self_attention_mask": additive(allowed)[:, None],
    }


def fixed_axis(net: Net, name: str, axis: int) -> int:
    """Length of an axis that must be fixed.

    Raises:
        ArtifactError: the net has no such input, or the axis is dynamic.
    """
    spec = net.input(name)
    length = spec.shape[axis] if spec is not None and len(spec.shape) > axis else None
    if not isinstance(length, int):
        raise ArtifactError(f"net '{net.name}': input {name} axis {axis} must be fixed; rebuild it")
    return length
