"""From stored answers to metrics: per-item counts first, then statistics over any first items."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.schema import Task
from verify.answers.metrics.answers import exact_answer, soft_accuracy
from verify.answers.metrics.captions import Cider, bleu_counts, corpus_bleu, exact_match
from verify.answers.metrics.retrieval import RECALL_AT, Reranked, ranks, recall
from verify.answers.metrics.statistics import AreaUnderCurve, Statistic, mean
from verify.evaluation.answer_store import Answer
from verify.evaluation.answering import unpack
from verify.evaluation.items import CaptionItem, DataSet, Item, MatchingItem, QuestionItem

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
        self._exact = array("d")
        self._bleu = array("i")
        self.scores = array("d")

    def add(self, item: Item, answer: Answer) -> None:
        """See ``Measures.add``."""
        if not isinstance(item, CaptionItem):
            raise TypeError(item.name)
        self._exact.append(exact_match(answer["text"], item.references))
        self._bleu.extend(bleu_counts(answer["text"], item.references))
        self.scores.append(self._cider.score(answer["text"], item.references))

    def statistics(self, items: int) -> dict[str, Statistic]:
        """See ``Measures.statistics``."""
        bleu = np.array(self._bleu).reshape(-1, 10)[:items]
        return {
            "exact_match": mean(np.array(self._exact)[:items]),
            "bleu_4": corpus_bleu(bleu),  # type: ignore[arg-type]
            "cider": mean(np.array(self.scores)[:items]),
        }


class QuestionMeasures(Measures):
    """The benchmark's soft accuracy, exact match."""

    def __init__(self) -> None:
        self._exact = array("d")
        self.scores = array("d")

    def add(self, item: Item, answer: Answer) -> None:
        """See ``Measures.add``."""
        if not isinstance(item, QuestionItem):
            raise TypeError(item.name)
        self._exact.append(exact_answer(answer["text"], item.answers))
        self.scores.append(soft_accuracy(answer["text"], item.answers))

    def statistics(self, items: int) -> dict[str, Statistic]:
        """See ``Measures.statistics``."""
        return {
            "soft_accuracy": mean(np.array(self.scores)[:items]),
            "exact_match": mean(np.array(self._exact)[:items]),
        }


class MatchingMeasures(Measures):
    """Accuracy and AUC of the matching head, recall of the contrastive features both ways."""

    def __init__(self) -> None:
        self._features = array("f")
        self._text_features = array("f")
        self._images = 0
        #: per text its image, and a number that equal texts share
        self._text_image = array("q")
        self._text_number = array("q")
        self._pair_image = array("q")
        self._pair_match = array("b")
        self._pair_logits = array("d")
        #: judgements of the matching head per image number and text number
        self.reranked: dict[int, dict[int, float]] | None = None

    def add(self, item: Item, answer: Answer) -> None:
        """See ``Measures.add``."""
        if not isinstance(item, MatchingItem):
            raise TypeError(item.name)
        self._features.extend(unpack(answer["image"]))
        self._text_features.extend(unpack(answer["texts"]))
        for text in item.texts:
            self._text_image.append(self._images)
            self._text_number.append(text_number(text))
        for (_, match), (other, fits) in zip(item.pairs, answer["logits"], strict=True):
            self._pair_image.append(self._images)
            self._pair_match.append(match)
            # Not the probability: near 1 it has no digits left to rank by.
            self._pair_logits.append(fits - other)
        self._images += 1

    def statistics(self, items: int) -> dict[str, Statistic]:
        """See ``Measures.statistics``."""
        found: dict[str, Statistic] = {}
        owner = np.array(self._pair_image, dtype=np.int64)
        chosen = owner < items
        owner = owner[chosen]
        margin = np.array(self._pair_logits)[chosen]
        match = np.array(self._pair_match, dtype=bool)[chosen]
        if len(owner):
            # One unit is an image with all its pairs; none of the data sets has images without.
            found["accuracy"] = _pair_accuracy((margin > 0) == match, owner, items)
        if match.any() and not match.all():
            found["auc"] = AreaUnderCurve(margin, match, owner, items)
        for name, positions in self._positions(items).items():
            for at in RECALL_AT:
                found[f"{name}_recall_{at}"] = recall(positions, at)
        return found

    def features(self, items: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Image features, features of distinct texts, their numbers, and each text's first image.

        Texts are in the order in which they first appear.
        """
        images = np.array(self._features, dtype=np.float32).reshape(self._images, -1)[:items]
        owner = np.array(self._text_image, dtype=np.int64)
        numbers = np.array(self._text_number, dtype=np.int64)
        texts = np.array(self._text_features, dtype=np.float32).reshape(len(numbers), -1)
        kept = owner < items
        distinct, first = np.unique(numbers[kept], return_index=True)
        order = np.argsort(first)
        return images, texts[kept][first[order]], distinct[order], owner[kept][first[order]]

    def _positions(self, items: int) -> dict[str, NDArray[np.int64]]:
        images, texts, numbers, _ = self.features(items)
        if len(images) < 2 or len(texts) < 2:
            return {}
        place = {int(number): index for index, number in enumerate(numbers)}
        of_image: list[list[int]] = [[] for _ in range(items)]
        of_text: list[list[int]] = [[] for _ in numbers]
        for image, number in zip(self._text_image, self._text_number, strict=True):
            if image < items:
                of_image[image].append(place[number])
                of_text[place[number]].append(image)
        asked = [image for image in range(items) if of_image[image]]
        for_images: list[Reranked] | None = None
        for_texts: list[Reranked] | None = None
        if self.reranked is not None:
            judged = self.reranked
            for_images = [
                {place[n]: s for n, s in judged.get(image, {}).items()} for image in asked
            ]
            by_text: list[dict[int, float]] = [{} for _ in numbers]
            for image, scores in judged.items():
                for number, score in scores.items():
                    by_text[place[number]][image] = score
            for_texts = list(by_text)
        return {
            "text": ranks(images[asked], texts, [of_image[i] for i in asked], for_images),
            "image": ranks(texts, images, of_text, for_texts),
        }


def _pair_accuracy(right: NDArray[Any], owner: NDArray[Any], items: int) -> Statistic:
    from verify.answers.metrics.statistics import Sums, share

    counts = np.stack(
        [
            np.bincount(owner, weights=right, minlength=items),
            np.bincount(owner, minlength=items),
        ],
        axis=1,
    )
    return Sums(counts, share)


def text_number(text: str) -> int:
    """A number that equal texts share, in place of the text: 62 bits of its digest."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def new_measures(task: Task, cider: Cider) -> Measures:
    """Empty measures; ``cider`` knows the references of the whole data set (captions)."""
    if task == "vqa":
        return QuestionMeasures()
    return MatchingMeasures() if task == "itm" else CaptionMeasures(cider)


def counted(data_set: DataSet, items: int) -> Cider:
    """Document frequencies of a data set's captions; of none for other tasks."""
    cider = Cider()
    if data_set.task != "caption":
        return cider
    for item in data_set.items(0, items):
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
