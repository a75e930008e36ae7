"""Runs one component over many items, in batches, or one by one where the net has a fixed batch.

A call's stages are timed by ``Timings``, and end at the next stage after its ``StopSignal``.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, TypeVar, Union

import numpy as np

from ..errors import InputError
from ..files.manifests import Net, TextSettings
from ..sessions.session import Session

ArrayDict = Dict[str, np.ndarray]
Item = TypeVar("Item")

#: Intermediate tensors that a stage may leave for the next one, in bytes: enough for the float32
#: cross keys and values of sixteen images of BLIP-base, so that one step serves them all.
STAGE_BYTES = 768 << 20
#: Most rows per call for nets with a dynamic batch.
BATCH_ROWS = 16
#: Inputs whose second axis counts the tokens of a text.
_TEXTS = ("input_ids", "attention_mask")
#: Most rows per stage for nets with a fixed one: their results come out together.
FIXED_ROWS = 64

#: Drafted tokens per pass of nets with dynamic shapes: the most, and what is usual.
ANY_DRAFTS = 64
DYNAMIC_DRAFTS = 3
#: Tokens that such a pass yields with a table of drafts, as measured (docs/performance.md).
TOKENS_PER_PASS = 1.5
#: Additive mask value; finite, because an infinite one becomes NaN in half precision.
MASKED = np.float32(-10000.0)
CROSS_MASK = "cross_attention_mask"


@dataclass
class Timings:
    """Seconds, calls and rows per stage, added up over everything measured with one object.

    May be shared between threads.
    """

    seconds: Dict[str, float] = field(default_factory=dict)
    calls: Dict[str, int] = field(default_factory=dict)
    rows: Dict[str, int] = field(default_factory=dict)
    #: drafted tokens among the rows of stage ``step``
    drafted: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def measure(self, stage: str, rows: int = 1) -> Iterator[None]:
        """Adds the time of the block to a stage."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - begin
            with self._lock:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed
                self.calls[stage] = self.calls.get(stage, 0) + 1
                self.rows[stage] = self.rows.get(stage, 0) + rows

    def accept(self, drafted: int) -> None:
        """Counts drafted tokens that a pass kept: steps that need none of their own."""
        with self._lock:
            self.rows["step"] = self.rows.get("step", 0) + drafted
            self.drafted += drafted

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that a row takes from each pass of the decoder, on average; 0 if never run."""
        tokens = self.rows.get("first_pass", 0) + self.rows.get("step", 0)
        return tokens / (tokens - self.drafted) if tokens else 0.0

    def milliseconds_per_row(self, stage: str) -> float:
        """Mean time of one row (image, question, token) in a stage, in ms; 0 if never run."""
        rows = self.rows.get(stage, 0)
        return 1000.0 * self.seconds.get(stage, 0.0) / rows if rows else 0.0


class StoppedError(Exception):
    """Raised inside a worker whose results nobody waits for any more."""


class StopSignal:
    """Tells workers to give up; ``check`` is called between the steps of their work."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """From now on ``check`` raises."""
        self._event.set()

    def check(self) -> None:
        """Does nothing, or raises.

        Raises:
            StoppedError: the work is not wanted any more.
        """
        if self._event.is_set():
            raise StoppedError


@contextmanager
def stage(
    name: str, rows: int, timings: Optional[Timings], stop: Optional[StopSignal]
) -> Iterator[None]:
    """One stage of a call: timed, and not begun where the call is not wanted any more.

    Raises:
        StoppedError: ``stop`` is set.
    """
    if stop is not None:
        stop.check()
    if timings is None:
        yield
        return
    with timings.measure(name, rows):
        yield


def fixed_batch(net: Net) -> Optional[int]:
    """The batch a net was compiled for, or None if dynamic."""
    axis = net.inputs[0].shape[0]
    return axis if isinstance(axis, int) else None


def fixed_length(net: Net, name: str) -> Optional[int]:
    """Length of an input's second axis, or None if dynamic or absent."""
    spec = net.input(name)
    axis = spec.shape[1] if spec is not None and len(spec.shape) > 1 else None
    return axis if isinstance(axis, int) else None


def chunk_rows(session: Session, bytes_per_row: int) -> int:
    """How many rows to take through all stages at once.

    Dynamic nets take a batch. Fixed ones take one row per call anyway, and as many rows per stage
    as memory allows: a simulator then loads each net once rather than once per image.
    ``SessionOptions.batch`` overrides both.
    """
    if session.options.batch is not None:
        return session.options.batch
    allowed = max(1, STAGE_BYTES // max(1, bytes_per_row))
    net = session.manifest.nets[0]
    if fixed_batch(net):
        return min(FIXED_ROWS, allowed)
    most = min(BATCH_ROWS, allowed)
    call = session.rows_per_call(net) or 1
    # Whole calls only: a call for the remainder would be a small one every time.
    return most - most % call if most > call else most


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive runs of at most ``size`` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def run_finite(session: Session, feeds: ArrayDict, net: Optional[str] = None) -> ArrayDict:
    """What a net makes of ``feeds``.

    Raises:
        BackendError: an output is NaN or infinite.
    """
    outputs = session.run(feeds, net=net)
    return {name: session.finite(name, array) for name, array in outputs.items()}


def run_rows(session: Session, feeds: ArrayDict, net: Optional[str] = None) -> ArrayDict:
    """Runs a net on any number of rows; every input's first axis counts rows.

    Of a net compiled for several batches, as many rows as fit are taken at once; of one compiled
    for several text lengths, the fastest that holds a row's text.
    """
    rows = len(next(iter(feeds.values())))
    chosen = session.net(net)
    batch = fixed_batch(chosen)
    if batch is None:
        return _run_dynamic(session, feeds, net)
    if batch == rows and not chosen.variants:
        return run_finite(session, feeds, net)
    parts: List[ArrayDict] = []
    start = 0
    for count in row_groups(rows, chosen.lengths("batch") or (batch,)):
        size = chosen.fastest(batch=count).axes.get("batch", batch)
        part = {name: array[start : start + count] for name, array in feeds.items()}
        start += count
        if count < size:
            part = {name: _filled(array, size) for name, array in part.items()}
        parts.append(_first_rows(_run_text(session, chosen, part), count))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _run_dynamic(session: Session, feeds: ArrayDict, net: Optional[str]) -> ArrayDict:
    """Runs a net of a dynamic batch, in as many calls as the session wants."""
    rows, most = len(next(iter(feeds.values()))), session.rows_per_call(session.net(net))
    if most is None or rows <= most:
        return run_finite(session, feeds, net)
    cuts = [slice(start, start + most) for start in range(0, rows, most)]
    parts = [run_finite(session, {name: a[cut] for name, a in feeds.items()}, net) for cut in cuts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def row_groups(rows: int, sizes: Sequence[int]) -> List[int]:
    """How many rows to take per call: always the largest size that is filled.

    A last group smaller than every size is to be filled up.
    """
    groups = []
    while rows:
        size = min(max((size for size in sizes if size <= rows), default=min(sizes)), rows)
        groups.append(size)
        rows -= size
    return groups


def _run_text(session: Session, net: Net, feeds: ArrayDict) -> ArrayDict:
    """Runs a net on texts cut to the fastest length that holds them; outputs as without that."""
    mask = feeds.get("attention_mask")
    if mask is None or len(net.lengths("text_tokens")) < 2:
        return run_finite(session, feeds, net.name)
    full = mask.shape[1]
    real = int(np.max(np.nonzero(mask.any(axis=0))[0], initial=0)) + 1
    length = net.fastest(text_tokens=real).axes["text_tokens"]
    cut = {name: a[:, :length] if name in _TEXTS else a for name, a in feeds.items()}
    outputs = run_finite(session, cut, net.name)
    padding = ((0, 0), (0, full - length), (0, 0))
    return {
        # What stands for padding is masked wherever it goes.
        name: np.pad(array, padding) if name == "last_hidden_state" else array
        for name, array in outputs.items()
    }


class TokenGrid:
    """Tokens of rows that share one length: a cell holds a token of its row, or nothing."""

    def __init__(self, held: np.ndarray, positions: np.ndarray) -> None:
        #: whether a cell holds a token ``[rows, length]``
        self.held = held
        #: position of each row's last token
        self.positions = positions

    @classmethod
    def empty(cls, rows: int) -> "TokenGrid":
        """Rows of no tokens."""
        return cls(np.zeros((rows, 0), dtype=bool), np.full(rows, -1, dtype=np.int64))

    def select(self, rows: np.ndarray) -> None:
        """Keeps these rows in this order; a row may be repeated."""
        self.held, self.positions = self.held[rows], self.positions[rows]

    def add(
        self, places: np.ndarray, tokens: Sequence[Sequence[int]]
    ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Adds tokens to the rows at these places; other rows grow by cells that hold nothing.

        Returns:
            ids and positions ``[rows, new]``, and what each may attend ``[rows, new, length]``.
        """
        rows, new = len(self.held), max(len(row) for row in tokens)
        ids, given = np.zeros((rows, new), dtype=np.int64), np.zeros((rows, new), dtype=bool)
        for place, row in zip(places.tolist(), tokens):
            ids[place, : len(row)] = row
            given[place, : len(row)] = True
        # A cell that holds nothing stays at a position that exists.
        positions = np.where(given, self.positions[:, None] + np.arange(1, new + 1), 0)
        past = np.broadcast_to(self.held[:, None], (rows, new, self.held.shape[1]))
        causal = np.tril(np.ones((new, new), dtype=bool))
        self.held = np.concatenate([self.held, given], axis=1)
        self._new = new
        return ids, positions, np.concatenate([past, given[:, None] & causal], axis=2)

    def keep(self, places: np.ndarray, counts: Sequence[int]) -> None:
        """The rows at these places keep so many of the tokens added last; the others none."""
        kept = np.zeros(len(self.held), dtype=np.int64)
        kept[places] = counts
        self.held[:, -self._new :] &= np.arange(self._new) < kept[:, None]
        self.positions = np.where(kept > 0, self.positions + kept, 0)


def additive(allowed: np.ndarray) -> np.ndarray:
    """A boolean mask as what is added to attention scores."""
    return np.where(allowed, np.float32(0.0), MASKED)


def consecutive(contexts: np.ndarray) -> Union[slice, np.ndarray]:
    """An index of these contexts: a slice, which copies nothing, where they are one run."""
    first, count = int(contexts[0]), len(contexts)
    if np.array_equal(contexts, np.arange(first, first + count)):
        return slice(first, first + count)
    return contexts


def as_numpy(value: Any) -> np.ndarray:
    """A numpy array from an array, a list, or a torch tensor on any device."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def like_input(array: np.ndarray, example: Any) -> Any:
    """The array as a torch tensor if the example is one; torch is never imported for it."""
    if type(example).__module__.split(".")[0] == "torch" and "torch" in sys.modules:
        return sys.modules["torch"].from_numpy(array)
    return array


def ragged(
    input_ids: np.ndarray, attention_mask: Optional[np.ndarray], text: TextSettings
) -> List[List[int]]:
    """Rows of real tokens from padded ids ``[batch, tokens]``, padded on either side.

    Raises:
        InputError: not ids of the vocabulary, or a mask of another shape.
    """
    if input_ids.ndim != 2 or (input_ids.size and input_ids.dtype.kind not in "iu"):
        raise InputError(
            f"input_ids of shape {list(input_ids.shape)} and dtype {input_ids.dtype}: pass "
            "integers [batch, tokens]"
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise InputError(
            f"attention_mask of shape {list(attention_mask.shape)}: pass that of input_ids, "
            f"{list(input_ids.shape)}"
        )
    mask = input_ids != text.pad_token_id if attention_mask is None else attention_mask != 0
    strange = input_ids[mask & ((input_ids < 0) | (input_ids >= text.vocabulary_size))]
    if strange.size:
        raise InputError(
            f"input_ids: {int(strange[0])} is outside 0..{text.vocabulary_size - 1}; use the "
            "checkpoint's own tokenizer"
        )
    return [[int(token) for token in row[keep]] for row, keep in zip(input_ids, mask)]


def text_rows(
    rows: Sequence[Sequence[int]], length: int, pad_token_id: int
) -> Tuple[np.ndarray, np.ndarray]:
    """Ids ``[batch, length]`` and mask (1 tokens, 0 padding), int64, padded on the right."""
    ids = np.full((len(rows), length), pad_token_id, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask


def padded_texts(
    session: Session, rows: Sequence[Sequence[int]], text: TextSettings
) -> Tuple[np.ndarray, np.ndarray]:
    """Ids and mask ``[batch, tokens]`` for a net: its fixed length, or that of the longest row.

    Raises:
        InputError: a row is longer than the net, or than the checkpoint's positions.
    """
    longest, limit = max(len(row) for row in rows), text_limit(session, text)
    if longest > limit:
        raise InputError(f"text of {longest} tokens, this artifact takes {limit}; shorten it")
    fixed = fixed_length(session.manifest.nets[0], "attention_mask")
    return text_rows(rows, longest if fixed is None else fixed, text.pad_token_id)


def text_limit(session: Session, text: TextSettings) -> int:
    """Most tokens of a text that a net takes."""
    fixed = fixed_length(session.manifest.nets[0], "attention_mask")
    return text.maximum_positions if fixed is None else min(fixed, text.maximum_positions)


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


def _first_rows(outputs: ArrayDict, count: int) -> ArrayDict:
    return {name: array[:count] for name, array in outputs.items()}
