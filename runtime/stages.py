"""Runs one component over many items: in batches, or one by one where the net has a fixed batch."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, TypeVar

import numpy as np

from runtime.manifests import Net
from runtime.sessions import Session

ArrayDict = Dict[str, np.ndarray]
Item = TypeVar("Item")

#: Intermediate tensors that a stage may leave for the next one, in bytes.
STAGE_BYTES = 256 << 20
#: Most rows per call for nets with a dynamic batch.
BATCH_ROWS = 16
#: Most rows per stage for nets with a fixed one: their results come out together.
FIXED_ROWS = 64


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
    most = FIXED_ROWS if fixed_batch(session.manifest.nets[0]) else BATCH_ROWS
    return min(most, allowed)


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive runs of at most ``size`` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def run_rows(session: Session, feeds: ArrayDict, net: Optional[str] = None) -> ArrayDict:
    """Runs a net on any number of rows; every input's first axis counts rows."""
    rows = len(next(iter(feeds.values())))
    batch = fixed_batch(session.net(net))
    if batch is None or batch == rows:
        return session.run(feeds, net=net)
    parts: List[ArrayDict] = []
    for start in range(0, rows, batch):
        part = {name: array[start : start + batch] for name, array in feeds.items()}
        count = len(next(iter(part.values())))
        if count < batch:
            part = {name: _filled(array, batch) for name, array in part.items()}
        parts.append(_first_rows(session.run(part, net=net), count))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def as_numpy(value: Any) -> np.ndarray:
    """A numpy array from an array, a list, or a torch tensor on any device."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def ragged(
    input_ids: np.ndarray, attention_mask: Optional[np.ndarray], pad_token_id: int
) -> List[List[int]]:
    """Rows of real tokens from padded ids ``[batch, tokens]``, padded on either side."""
    mask = input_ids != pad_token_id if attention_mask is None else attention_mask != 0
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


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


def _first_rows(outputs: ArrayDict, count: int) -> ArrayDict:
    return {name: array[:count] for name, array in outputs.items()}
