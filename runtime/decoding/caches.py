"""Self-attention caches of a decoder: keys and values of the tokens that were already fed."""

from __future__ import annotations

from typing import Dict, List

import numpy as np

from ..files.manifests import Dimensions

ArrayDict = Dict[str, np.ndarray]
_FIRST_CAPACITY = 32


def past_names(layers: int) -> List[str]:
    """Contract names of the past keys and values, in order."""
    return [f"past.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def new_names(layers: int) -> List[str]:
    """Contract names of the new keys and values, in the order of ``past_names``."""
    return [f"new.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


class GrowingCache:
    """Rows of equal length that grow by what each call adds: ``[rows, length, heads, head size]``.

    Memory is taken ahead of need, so that adding a token copies that token only.
    """

    def __init__(self, dimensions: Dimensions, rows: int) -> None:
        self.length = 0
        self._past = past_names(dimensions.layers)
        self._new = new_names(dimensions.layers)
        shape = (rows, _FIRST_CAPACITY, dimensions.heads, dimensions.head_size)
        self._buffers = [np.zeros(shape, dtype=np.float32) for _ in self._past]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._buffers[0].shape[0])

    def feeds(self) -> ArrayDict:
        """The past as a decoder's inputs; no copy where there is one row."""
        return {name: buffer[:, : self.length] for name, buffer in zip(self._past, self._buffers)}

    def append(self, outputs: ArrayDict) -> None:
        """Adds the new keys and values of a call, ``[rows, new tokens, heads, head size]``."""
        added = outputs[self._new[0]].shape[1]
        while self.length + added > self._buffers[0].shape[1]:
            self._buffers = [
                np.concatenate([buffer, np.zeros_like(buffer)], axis=1) for buffer in self._buffers
            ]
        for name, buffer in zip(self._new, self._buffers):
            buffer[:, self.length : self.length + added] = outputs[name]
        self.length += added

    def select(self, rows: np.ndarray) -> None:
        """Keeps these rows in this order; a row may be repeated."""
        self._buffers = [buffer[rows] for buffer in self._buffers]


class FixedCache:
    """Rows of different lengths in slots of fixed number: ``[rows, slots, heads, head size]``.

    Unused slots are zero, so that a masked slot never feeds a NaN into an attention sum.
    """

    def __init__(self, dimensions: Dimensions, rows: int, slots: int) -> None:
        self.slots = slots
        self.lengths = np.zeros(rows, dtype=np.int64)
        self._past = past_names(dimensions.layers)
        self._new = new_names(dimensions.layers)
        shape = (rows, slots, dimensions.heads, dimensions.head_size)
        self._buffers = [np.zeros(shape, dtype=np.float32) for _ in self._past]

    def feeds(self, rows: range, slots: int) -> ArrayDict:
        """Some rows' first ``slots`` as inputs, ``[rows, slots, heads, head size]``; no copy."""
        return {
            name: buffer[rows.start : rows.stop, :slots]
            for name, buffer in zip(self._past, self._buffers)
        }

    def append(self, rows: range, outputs: ArrayDict, tokens: int) -> None:
        """Adds the last ``tokens`` new keys and values to some rows; overflow is not needed."""
        for index, row in enumerate(rows):
            start = int(self.lengths[row])
            kept = min(tokens, self.slots - start)
            for name, buffer in zip(self._new, self._buffers):
                new = outputs[name][index]
                first = new.shape[0] - tokens
                buffer[row, start : start + kept] = new[first : first + kept]
            self.lengths[row] = start + tokens

    def select(self, rows: np.ndarray) -> None:
        """Keeps these rows in this order; a row may be repeated."""
        self._buffers = [buffer[rows] for buffer in self._buffers]
        self.lengths = self.lengths[rows]
