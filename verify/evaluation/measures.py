"""From stored answers to metrics: per-item counts first, then statistics over any first items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.schema import Task
from verify.answers.metrics.answers import exact_answer, soft_accuracy
from verify.answers.metrics.captions import Cider, bleu_counts, corpus_bleu, exact_match
from verify.answers.metrics.retrieval import RECALL_AT, Reranked, best_candidates, ranks, recall
from verify.answers.metrics.statistics import AreaUnderCurve, Statistic, Sums, mean, share
from verify.evaluation.answer_store import Answer
from verify.evaluation.answering import unpack
from verify.evaluation.items import CaptionItem, Item, MatchingItem, QuestionItem

_ROWS_AT_ONCE = 256

#: What each metric is called in tables, and the largest value it can have.
TITLES: dict[str, tuple[str, float]] = {
    "exact_match": ("exact match", 1.0),
    "bleu_4": ("BLEU-4", 1.0),
    "cider": ("CIDEr", 10.0),
    "soft_accuracy": ("VQA accuracy", 1.0),
    "accuracy": ("accuracy", 1.0),
    "auc": ("AUC", 1.0),
    "text_recall_1": ("text R@1", 1.0),
    "text_recall_5": ("text R@5", 1.0),
    "text_recall_10": ("text R@10", 1.0),
    "image_recall_1": ("image R@1", 1.0),
    "image_recall_5": ("image R@5", 1.0),
    "image_recall_10": ("image R@10", 1.0),
}


class Measures(ABC):
    """Per-item counts of one subject's answers, added in the order of the items."""

    @abstractmethod
    def add(self, item: Item, answer: Answer) -> None:
        """The next item."""

    @abstractmethod
    def statistics(self, items: int) -> dict[str, Statistic]:
        """Metrics of the first items; those that the data set has nothing for are left out."""


class CaptionMeasures(Measures):
    """Exact match, BLEU-4, CIDEr-D."""

    def __init__(self, cider: Cider) -> None:
        """``cider`` has counted the references of the whole data set."""
        self._cider = cider
        self._exact: list[float] = []
        self._bleu: list[Sequence[int]] = []
        self.scores: list[float] = []

    def add(self, item: Item, answer: Answer) -> None:
        """See ``Measures.add``."""
        if not isinstance(item, CaptionItem):
            raise TypeError(item.name)
        self._exact.append(exact_match(answer["text"], item.references))
        self._bleu.append(bleu_counts(answer["text"], item.references))
        self.scores.append(self._cider.score(answer["text"], item.references))

    def statistics(self, items: int) -> dict[str, Statistic]:
        """See ``Measures.statistics``."""
        return {
            "exact_match": mean(np.array(self._exact[:items])),
            "bleu_4": corpus_bleu(self._bleu[:items]),
            "cider": mean(np.array(self.scores[:items])),
        }


class QuestionMeasures(Measures):
    """The benchmark's soft accuracy, exact match."""

    def __init__(self) -> None:
        self._exact: list[float] = []
        self.scores: list[float] = []

    def add(self, item: Item, answer: Answer) -> None:
        """See ``Measures.add``."""
        if not isinstance(item, QuestionItem):
            raise TypeError(item.name)
        self._exact.append(exact_answer(answer["text"], item.answers))
        self.scores.append(soft_accuracy(answer["text"], item.answers))

    def statistics(self, items: int) -> dict[str, Statistic]:
        """See ``Measures.statistics``."""
        return {
            "soft_accuracy": mean(np.array(self.scores[:items])),
            "exact_match": mean(np.array(self._exact[:items])),
        }


class MatchingMeasures(Measures):
    """Accuracy and AUC of the matching head, recall of the contrastive features both ways."""

    def __init__(self) -> None:
        self._images: list[NDArray[Any]] = []
        #: per text its image, itself and its features
        self._texts: list[tuple[int, str, NDArray[Any]]] = []
        #: per pair its image, its logits' difference and whether it matches
        self._pairs: list[tuple[int, float, bool]] = []
        #: judgements of the matching head per image and text
        self.reranked: list[dict[str, float]] | None = None

    def add(self, item: Item, answer: Answer) -> None:
        """See ``Measures.add``."""
        if not isinstance(item, MatchingItem):
            raise TypeError(item.name)
        number = len(self._images)
        self._images.append(unpack(answer["image"]))
        if item.texts:
            features = unpack(answer["texts"]).reshape(len(item.texts), -1)
            self._texts += [(number, *pair) for pair in zip(item.texts, features, strict=True)]
        # Not the probability: near 1 it has no digits left to rank by.
        self._pairs += [
            (number, fits - other, match)
            for (_, match), (other, fits) in zip(item.pairs, answer["logits"], strict=True)
        ]

    def statistics(self, items: int) -> dict[str, Statistic]:
        """See ``Measures.statistics``."""
        found: dict[str, Statistic] = {}
        pairs = [pair for pair in self._pairs if pair[0] < items]
        owner = np.array([image for image, _, _ in pairs], dtype=np.int64)
        margin = np.array([margin for _, margin, _ in pairs])
        match = np.array([match for _, _, match in pairs], dtype=bool)
        if len(owner):
            # One unit is an image with all its pairs; none of the data sets has images without.
            found["accuracy"] = _pair_accuracy((margin > 0) == match, owner, items)
        if match.any() and not match.all():
            found["auc"] = AreaUnderCurve(margin, match, owner, items)
        for name, positions in self._positions(items).items():
            for at in RECALL_AT:
                found[f"{name}_recall_{at}"] = recall(positions, at)
        return found

    def candidates(self, items: int, count: int) -> list[tuple[str, ...]]:
        """Texts to judge per image: its ``count`` best, and those that it is among the best for."""
        images, of_texts, texts = self._features(items)
        found: list[set[int]] = [set() for _ in images]
        for image, best in _best(images, of_texts, count):
            found[image].update(best)
        for text, best in _best(of_texts, images, count):
            for image in best:
                found[image].add(text)
        return [tuple(texts[index] for index in sorted(chosen)) for chosen in found]

    def _features(self, items: int) -> tuple[NDArray[Any], NDArray[Any], list[str]]:
        """Image features, features of distinct texts, and these texts as they first appear."""
        distinct: dict[str, NDArray[Any]] = {}
        for image, text, features in self._texts:
            if image < items:
                distinct.setdefault(text, features)
        return np.array(self._images[:items]), np.array(list(distinct.values())), list(distinct)

    def _positions(self, items: int) -> dict[str, NDArray[np.int64]]:
        images, of_texts, texts = self._features(items)
        if len(images) < 2 or len(texts) < 2:
            return {}
        place = {text: index for index, text in enumerate(texts)}
        of_image: list[list[int]] = [[] for _ in images]
        of_text: list[list[int]] = [[] for _ in texts]
        for image, text, _ in self._texts:
            if image < items:
                of_image[image].append(place[text])
                of_text[place[text]].append(image)
        asked = [image for image in range(items) if of_image[image]]
        for_images: list[Reranked] | None = None
        for_texts: list[dict[int, float]] | None = None
        if self.reranked is not None:
            judged = [{place[t]: s for t, s in scores.items()} for scores in self.reranked]
            for_images = [judged[image] for image in asked]
            for_texts = [{} for _ in texts]
            for image, scores in enumerate(judged):
                for number, score in scores.items():
                    for_texts[number][image] = score
        return {
            "text": ranks(images[asked], of_texts, [of_image[i] for i in asked], for_images),
            "image": ranks(of_texts, images, of_text, for_texts),
        }


def _best(
    queries: NDArray[Any], gallery: NDArray[Any], count: int
) -> Iterator[tuple[int, list[int]]]:
    for start in range(0, len(queries), _ROWS_AT_ONCE):
        for row, scores in enumerate(queries[start : start + _ROWS_AT_ONCE] @ gallery.T):
            yield start + row, best_candidates(scores, count)


def _pair_accuracy(right: NDArray[Any], owner: NDArray[Any], items: int) -> Statistic:
    counts = np.stack(
        [
            np.bincount(owner, weights=right, minlength=items),
            np.bincount(owner, minlength=items),
        ],
        axis=1,
    )
    return Sums(counts, share)


def new_measures(task: Task, cider: Cider) -> Measures:
    """Empty measures; ``cider`` knows the references of the whole data set (captions)."""
    if task == "vqa":
        return QuestionMeasures()
    return MatchingMeasures() if task == "itm" else CaptionMeasures(cider)


def counted(items: Iterable[Item]) -> Cider:
    """Document frequencies of a data set's captions; of none for other tasks."""
    cider = Cider()
    for item in items:
        if isinstance(item, CaptionItem):
            cider.count(item.references)
    return cider


def first_difference(one: Sequence[int], other: Sequence[int], prompt: int) -> int | None:
    """Position of the first differing generated token, counted from 0, or None if all are equal."""
    if list(one) == list(other):
        return None
    shorter = min(len(one), len(other))
    position = next((i for i in range(shorter) if one[i] != other[i]), shorter)
    return max(0, position - prompt)
