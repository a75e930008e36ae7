"""Defects of the runtime: positions, masks and cache rows of the decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from tests.faults.fault import Fault, host_fault
from tests.faults.patches import method


@contextmanager
def _weak_mask() -> Iterator[None]:
    with patch("runtime.decoding.batching.MASKED", np.float32(-1.0)):
        yield


@contextmanager
def _position_off() -> Iterator[None]:
    from runtime.decoding.decoder_run import GrowingRun

    right = GrowingRun._call

    def wrong(self: Any, ids: Any, positions: Any, allowed: Any, logits: int) -> Any:
        return right(self, ids, positions + 1, allowed, logits)

    with patch.object(GrowingRun, "_call", wrong):
        yield


@contextmanager
def _fixed_position_off() -> Iterator[None]:
    import runtime.decoding.decoder_run as decoding

    right = decoding.fixed_call

    def wrong(tokens: Any, length: int, past: int, slots: int, real: int) -> Any:
        feeds = right(tokens, length, past, slots, real)
        return {**feeds, "position_ids": np.maximum(feeds["position_ids"] - 1, 0)}

    with patch("runtime.decoding.decoder_run.fixed_call", wrong):
        yield


@contextmanager
def _stale_row() -> Iterator[None]:
    from runtime.decoding.caches import GrowingCache

    right = GrowingCache.append

    def wrong(self: Any, outputs: Any) -> None:
        first = self.length
        right(self, outputs)
        if first > 2:
            for buffer in self._buffers:
                buffer[:, first] = buffer[:, first - 1]

    with patch.object(GrowingCache, "append", wrong):
        yield


@contextmanager
def _question_pads_attended() -> Iterator[None]:
    import runtime.decoding.decoder_run as decoding

    right = decoding.cross_mask

    def wrong(cross: Any, tokens: int) -> Any:
        return right(cross, tokens) * 0

    with patch("runtime.decoding.decoder_run.cross_mask", wrong):
        yield


def _last_row_lost(right: Any) -> Any:
    def wrong(self: Any, rows: range, outputs: Any, tokens: int) -> None:
        full = [row for row in rows if self.lengths[row] + tokens >= self.slots]
        right(self, rows, outputs, tokens)
        for row in full:
            for buffer in self._buffers:
                buffer[row, self.slots - 1] = 0

    return wrong


def _forgets_when_growing(right: Any) -> Any:
    def wrong(self: Any, outputs: Any) -> None:
        before = self._buffers[0].shape[1]
        right(self, outputs)
        if self._buffers[0].shape[1] != before:
            for buffer in self._buffers:
                buffer[:, : self.length - 1] = 0

    return wrong


CACHE_FAULTS: list[Fault] = [
    host_fault(
        "masked scores get -1 instead of -10000",
        "caption",
        r"host: text_decoder self_attention_mask",
        active=_weak_mask,
    ),
    host_fault(
        "position off by one", "caption", r"host: text_decoder position_ids", active=_position_off
    ),
    host_fault(
        "position off by one on chips",
        "vqa",
        r"host: text_decoder position_ids",
        active=_fixed_position_off,
    ),
    host_fault("stale cache row", "caption", r"host: text_decoder cache", active=_stale_row),
    host_fault(
        "question's padding attended",
        "vqa",
        r"host: text_decoder cross_attention_mask",
        active=_question_pads_attended,
    ),
    host_fault(
        "last cache row lost",
        "caption",
        r"host: text_decoder cache",
        active=method("runtime.decoding.caches", "FixedCache", "append", _last_row_lost),
    ),
    host_fault(
        "cache forgets when it grows",
        "vqa",
        r"host: text_decoder cache",
        active=method("runtime.decoding.caches", "GrowingCache", "append", _forgets_when_growing),
    ),
]
