"""Defects of the runtime: rows of a batch that get mixed up, and scores of matching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from tests.faults.fault import Fault, host_fault
from tests.faults.patches import method


@contextmanager
def _wrong_logit() -> Iterator[None]:
    import runtime.tasks.matching as matching

    right = matching.softmax
    with patch("runtime.tasks.matching.softmax", lambda logits: right(logits)[:, ::-1]):
        yield


@contextmanager
def _cosine_scaled() -> Iterator[None]:
    """The contrastive score is divided by a temperature."""
    from dataclasses import replace

    from runtime.tasks.matching import Matcher

    right = Matcher._matches

    def wrong(self: Any, *given: Any, **named: Any) -> Any:
        found = right(self, *given, **named)
        return [replace(match, cosine=match.cosine / 0.5) for match in found]

    with patch.object(Matcher, "_matches", wrong):
        yield


def _of_other_images(right: Any) -> Any:
    def wrong(self: Any, embeds: Any, questions: Any, images: Any = None, **more: Any) -> Any:
        mixed = None if images is None else [i % len(embeds) for i in range(len(images))]
        return right(self, embeds, questions, mixed, **more)

    return wrong


def _pairs_of_other_images(right: Any) -> Any:
    def wrong(self: Any, embeds: Any, texts: Any, rows: Any, *more: Any) -> Any:
        return right(self, embeds, texts, [i % len(embeds) for i in range(len(rows))], *more)

    return wrong


def _ranked_by_columns(right: Any) -> Any:
    def wrong(self: Any, images: Any, texts: Any, **more: Any) -> Any:
        found = right(self, images, texts, **more)
        same = len(images) == len(texts)
        return replace(found, probability=found.probability.T) if same else found

    return wrong


BATCH_FAULTS: list[Fault] = [
    host_fault(
        "probability of the wrong logit",
        "itm",
        r"(host|generation): match prob",
        active=_wrong_logit,
    ),
    host_fault("contrastive cosine scaled", "itm", r"generation: .*cosine", active=_cosine_scaled),
    host_fault(
        "questions of other images",
        "vqa",
        r"generation: rows of a batch",
        active=method("runtime.tasks.answering", "QuestionAnswerer", "answer", _of_other_images),
    ),
    host_fault(
        "texts of other images",
        "itm",
        r"generation: rows of a batch",
        active=method("runtime.tasks.matching", "Matcher", "_matches", _pairs_of_other_images),
    ),
    host_fault(
        "ranking transposed",
        "itm",
        r"generation: rows of a batch",
        active=method("runtime.tasks.matching", "Matcher", "rank", _ranked_by_columns),
    ),
]
