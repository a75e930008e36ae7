"""Defects of the runtime: which token comes next, and when an answer ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np

from tests.faults.fault import Fault, host_fault
from tests.faults.patches import method


@contextmanager
def _never_ends() -> Iterator[None]:
    import runtime.generation.generate as generation

    right = generation.Limits

    def wrong(longest: int, shortest: int, end_token_id: int) -> Any:
        return right(longest=longest, shortest=shortest, end_token_id=end_token_id + 1)

    with patch("runtime.generation.generate.Limits", wrong):
        yield


@contextmanager
def _beams_not_moved() -> Iterator[None]:
    """Rows of a cache stay where they are when beams change places."""
    from runtime.decoding.caches import FixedCache, GrowingCache

    growing, fixed = GrowingCache.select, FixedCache.select

    def of_growing(self: Any, rows: np.ndarray) -> None:
        growing(self, np.arange(len(rows)) if len(rows) == self.rows else rows)

    def of_fixed(self: Any, rows: np.ndarray) -> None:
        fixed(self, np.arange(len(rows)) if len(rows) == len(self.lengths) else rows)

    with (
        patch.object(GrowingCache, "select", of_growing),
        patch.object(FixedCache, "select", of_fixed),
    ):
        yield


@contextmanager
def _penalty_lost() -> Iterator[None]:
    with patch("runtime.generation.settings.penalise_repetition", lambda *_: None):
        yield


@contextmanager
def _long_answers() -> Iterator[None]:
    import runtime.generation.generate as generation

    right = generation.Limits

    def wrong(longest: int, shortest: int, end_token_id: int) -> Any:
        last = max(shortest, longest - 1)
        return right(longest=longest, shortest=last, end_token_id=end_token_id)

    with patch("runtime.generation.generate.Limits", wrong):
        yield


def _without(**dropped: Any) -> Callable[[Any], Any]:
    """``BeamSearch`` or rules that are built without one of their settings."""

    def make(right: Any) -> Any:
        def wrong(self: Any, *given: Any) -> None:
            changed = [
                replace(item, **{k: v for k, v in dropped.items() if hasattr(item, k)})
                if hasattr(item, next(iter(dropped)))
                else item
                for item in given
            ]
            right(self, *changed)

        return wrong

    return make


_BEAMS = ("runtime.generation.generate", "BeamSearch", "__init__")

SEARCH_FAULTS: list[Fault] = [
    host_fault("end token ignored", "caption", r"generation: end token", active=_never_ends),
    host_fault(
        "beams do not move their cache rows",
        "caption",
        r"generation: beam",
        active=_beams_not_moved,
    ),
    host_fault("repetition penalty ignored", "vqa", r"generation: scores", active=_penalty_lost),
    host_fault(
        "end token held back to the last step", "caption", r"generation: ", active=_long_answers
    ),
    host_fault(
        "length penalty ignored",
        "caption",
        r"generation: length penalty",
        active=method(*_BEAMS, _without(length_penalty=1.0)),
    ),
    # Early stopping is not among them: on checkpoints as sure as these it changes no answer,
    # whatever the penalties. tests/test_runtime_generation.py has it, on random weights.
    host_fault(
        "repeated n-grams allowed",
        "vqa",
        r"generation: repeated n-grams",
        active=method(
            "runtime.generation.settings",
            "ScoreRules",
            "__init__",
            _without(no_repeat_ngram_size=0),
        ),
    ),
    host_fault(
        "minimum length one token short",
        "caption",
        r"generation: ",
        active=method(
            "runtime.generation.settings",
            "GenerationSettings",
            "lengths",
            lambda right: lambda self, *given: (right(self, *given)[0], right(self, *given)[1] - 1),
        ),
    ),
    host_fault(
        "default answers too short",
        "caption",
        r"generation: default length",
        active=lambda: patch("runtime.generation.settings.DEFAULT_NEW_TOKENS", 16),
    ),
]
