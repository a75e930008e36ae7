"""One subject's answers beside the checkpoint's: agreement, divergence, the worst cases."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import exp
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.atomic import replacing
from pipeline.scenes.scene import SCENES_VERSION
from verify.evaluation.answer_store import Answer, AnswerStore
from verify.evaluation.items import CaptionItem, Item, MatchingItem, Picture, QuestionItem
from verify.evaluation.measures import CaptionMeasures, Measures, QuestionMeasures, first_difference

#: Cases that a result shows.
WORST = 20
#: Longer side of a thumbnail, in pixels.
THUMBNAIL_PIXELS = 256
THUMBNAILS = "thumbnails"


@dataclass(frozen=True)
class Case:
    """How one item (or one text of an item) was answered by both sides."""

    number: int
    pair: int
    score: float
    checkpoint_score: float
    differs: bool
    divergence: int | None

    @property
    def badness(self) -> tuple[float, bool, float, int]:
        """Larger is worse: what was lost, then what differs, then what is bad on both sides."""
        return (
            self.checkpoint_score - self.score,
            self.differs,
            -self.score,
            -self.number,
        )


@dataclass(frozen=True)
class Beside:
    """The whole comparison."""

    compared: int
    same: int
    #: of the first differing token, one per item that differs, in order
    positions: list[int]
    worst: tuple[Case, ...]

    @property
    def rate(self) -> float:
        """Share of equal answers."""
        return self.same / self.compared if self.compared else 0.0

    def divergence(self) -> dict[str, Any]:
        """As it stands in the result."""
        return {
            "count": len(self.positions),
            "earliest": self.positions[0] if self.positions else None,
            "median": median(self.positions) if self.positions else None,
            "positions": {str(key): count for key, count in Counter(self.positions).items()},
        }


def compare_answers(
    items: Sequence[Item],
    answers: AnswerStore,
    expected: AnswerStore,
    measures: Measures,
    reference: Measures,
) -> Beside:
    """Both sides' answers to each item; the worst cases are kept."""
    cases: list[Case] = []
    for number, item in enumerate(items):
        found, wanted = answers[number], expected[number]
        if isinstance(item, MatchingItem):
            logits = zip(found["logits"], wanted["logits"], strict=True)
            cases += [
                _decision(number, pair, *both, match=item.pairs[pair][1])
                for pair, both in enumerate(logits)
            ]
            continue
        position = first_difference(found["tokens"], wanted["tokens"], wanted["prompt"])
        scores = (_score(measures, number), _score(reference, number))
        cases.append(Case(number, 0, *scores, position is not None, position))
    return Beside(
        compared=len(cases),
        same=sum(not case.differs for case in cases),
        positions=sorted(case.divergence for case in cases if case.divergence is not None),
        worst=tuple(heapq.nlargest(WORST, cases, key=lambda case: case.badness)),
    )


def _decision(
    number: int, pair: int, mine: list[float], theirs: list[float], *, match: bool
) -> Case:
    yes, other = probability(mine), probability(theirs)
    scores = (yes, other) if match else (1.0 - yes, 1.0 - other)
    return Case(number, pair, *scores, (yes > 0.5) != (other > 0.5), None)


def _score(measures: Measures, number: int) -> float:
    if not isinstance(measures, CaptionMeasures | QuestionMeasures):
        raise TypeError(type(measures).__name__)
    return measures.scores[number]


def probability(logits: list[float]) -> float:
    """That the text fits, from the matching head's two logits."""
    other, fits = logits
    difference = other - fits
    # Both branches keep the exponent from overflowing.
    if difference > 0:
        return exp(-difference) / (1.0 + exp(-difference))
    return 1.0 / (1.0 + exp(difference))


def worst_records(
    worst: tuple[Case, ...],
    items: Sequence[Item],
    answers: AnswerStore,
    expected: AnswerStore,
    folder: Path,
) -> list[dict[str, Any]]:
    """The worst cases as they stand in the result; their thumbnails are written to ``folder``."""
    records = []
    for case in worst:
        item, found, wanted = items[case.number], answers[case.number], expected[case.number]
        records.append(
            {
                "item": item.name,
                "image": _thumbnail(item.picture, folder),
                "text": _text(item, case.pair),
                "references": _references(item, case.pair),
                "checkpoint": _shown(item, wanted, case.pair),
                "answer": _shown(item, found, case.pair),
                "checkpoint_score": round(case.checkpoint_score, 6),
                "score": round(case.score, 6),
                "differs": case.differs,
                "first_divergence": case.divergence,
            }
        )
    return records


def _text(item: Item, pair: int) -> str:
    if isinstance(item, CaptionItem):
        return item.prompt
    return item.question if isinstance(item, QuestionItem) else item.pairs[pair][0]


def _references(item: Item, pair: int) -> list[str]:
    if isinstance(item, MatchingItem):
        return ["match" if item.pairs[pair][1] else "no match"]
    given = item.references if isinstance(item, CaptionItem) else item.answers
    return list(dict.fromkeys(given))


def _shown(item: Item, answer: Answer, pair: int) -> str:
    if isinstance(item, MatchingItem):
        return f"{probability(answer['logits'][pair]):.3f}"
    return str(answer["text"])


def _thumbnail(picture: Picture, folder: Path) -> str:
    what = f"{SCENES_VERSION} {picture.scene} {picture.path} {picture.stamp()}"
    digest = sha256(what.encode()).hexdigest()
    path = folder / THUMBNAILS / f"{digest[:16]}.jpg"
    if not path.is_file():
        image = picture.load().copy()
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        with replacing(path) as temporary:
            image.save(temporary, "JPEG", quality=85)
    return f"{THUMBNAILS}/{path.name}"
