"""Rules of searching on random numbers: HuggingFace agrees, and each wrong rule has its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from runtime.generation import settings
from runtime.generation.settings import GenerationSettings
from verify.host import search_rules
from verify.host.search_rules import search_rule_findings


def test_the_runtime_searches_as_hugging_face_does() -> None:
    assert search_rule_findings() == []
    assert search_rules.number_of_settings() > 100


def shorter(right: Callable[..., tuple[int, int]], most: int, least: int) -> Callable[..., Any]:
    def lengths(self: Any, *given: int) -> tuple[int, int]:
        longest, shortest = right(self, *given)
        return longest - most, max(0, shortest - least)

    return lengths


def divided(sequences: np.ndarray, scores: np.ndarray, penalty: float) -> None:
    """Negative scores become larger where they should become smaller."""
    for row, sequence in enumerate(sequences):
        scores[row, np.unique(sequence)] /= np.float32(penalty)


LENGTHS = GenerationSettings.lengths
FAULTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "maximum length": (
        "maximum length",
        lambda: patch.object(GenerationSettings, "lengths", shorter(LENGTHS, 1, 0)),
    ),
    "minimum length": (
        "minimum length",
        lambda: patch.object(GenerationSettings, "lengths", shorter(LENGTHS, 0, 1)),
    ),
    "negative scores": ("scores", lambda: patch.object(settings, "penalise_repetition", divided)),
    "no n-grams": (
        "repeated n-grams",
        lambda: patch.object(settings, "ban_repeated_ngrams", lambda *_: None),
    ),
    "forbidden words": (
        "forbidden words",
        lambda: patch.object(settings, "ban_words", lambda *_: None),
    ),
    "no top-k": ("sampling", lambda: patch.object(settings, "keep_top_k", lambda *_: None)),
    "no top-p": ("sampling", lambda: patch.object(settings, "keep_top_p", lambda *_: None)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_rule_is_named(fault: str) -> None:
    rule, planted = FAULTS[fault]
    with planted():
        found = {finding.where for finding in search_rule_findings()}
    assert rule in found
