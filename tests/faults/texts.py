"""Defects of the runtime: how texts become tokens, and tokens texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from tests.faults.fault import Fault, host_fault
from tests.faults.patches import method


@contextmanager
def _no_prompt() -> Iterator[None]:
    from runtime.preprocessing.processor import TextTokenizer

    with patch.object(TextTokenizer, "prompt", lambda s, _t: [s.settings.start_token_id]):
        yield


@contextmanager
def _pads_attended() -> Iterator[None]:
    import runtime.decoding.batching as texts

    right = texts.text_rows

    def wrong(rows: Sequence[Sequence[int]], length: int, pad: int) -> Any:
        ids, mask = right(rows, length, pad)
        return ids, np.ones_like(mask)

    with patch("runtime.decoding.batching.text_rows", wrong):
        yield


@contextmanager
def _keeps_last_separator() -> Iterator[None]:
    from runtime.preprocessing.processor import TextTokenizer

    def wrong(self: Any, text: Any) -> list[int]:
        start = [self.settings.start_token_id]
        return [*start, *self.encode(text)[1:]] if text else start

    with patch.object(TextTokenizer, "prompt", wrong):
        yield


@contextmanager
def _question_cut() -> Iterator[None]:
    from runtime.preprocessing.processor import TextTokenizer

    right = TextTokenizer.question
    with patch.object(TextTokenizer, "question", lambda self, text: right(self, text)[:5]):
        yield


@contextmanager
def _raw_words() -> Iterator[None]:
    """Decoded text keeps the marks of word pieces and special tokens."""
    from runtime.preprocessing.processor import TextTokenizer

    def wrong(self: Any, ids: Any) -> str:
        return " ".join(self._tokenizer.id_to_token(int(i)) or "" for i in ids)

    with patch.object(TextTokenizer, "decode", wrong):
        yield


TEXT_FAULTS: list[Fault] = [
    host_fault("prompt missing", "caption", r"tokenization: prompt", active=_no_prompt),
    host_fault(
        "prompt keeps its [SEP]", "caption", r"tokenization: prompt", active=_keeps_last_separator
    ),
    host_fault(
        "padding attended", "itm", r"host: text_encoder\S* attention_mask", active=_pads_attended
    ),
    host_fault("question cut after five tokens", "vqa", r"tokenization: ", active=_question_cut),
    host_fault(
        "decoded text keeps word-piece marks", "caption", r"tokenization: ", active=_raw_words
    ),
    host_fault(
        "question cut after 40 tokens",
        "vqa",
        r"tokenization: ",
        active=method(
            "runtime.preprocessing.processor",
            "TextTokenizer",
            "question",
            lambda right: lambda self, text: right(self, text)[:40],
        ),
    ),
]
