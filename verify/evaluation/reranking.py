"""Optional second stage of retrieval: the matching head ranks the best by cosine anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.console import steps
from verify.answers.metrics.retrieval import best_candidates
from verify.evaluation.answer_store import AnswerStore
from verify.evaluation.items import DataSet, MatchingItem
from verify.evaluation.measures import MatchingMeasures, Measures, text_number
from verify.evaluation.subjects import Subject
from verify.evaluation.workers import Job, Workers

#: Images whose candidates one job judges.
_IMAGES_PER_JOB = 8
_ROWS_AT_ONCE = 256


def rerank(
    measures: Measures,
    subject: Subject,
    data_set: DataSet,
    items: int,
    count: int,
    workers: Workers,
    path: Path,
) -> None:
    """Lets the head judge the ``count`` best texts of every image and images of every text.

    Raises:
        ToolError: a backend failed.
    """
    if not isinstance(measures, MatchingMeasures):
        return
    images, texts, numbers, owners = measures.features(items)
    chosen = _candidates(images, texts, count)
    texts_of = _TextLookup(data_set, [int(n) for n in numbers], [int(o) for o in owners])
    measures.reranked = {}
    with AnswerStore(path, items) as store:
        if data_set.kind != "scenes":
            store.forget_changed(
                (number, item.picture.stamp())
                for number, item in enumerate(data_set.items(0, items))
            )
        missing = [number for numbers_ in store.missing() for number in numbers_]
        missing = [image for image in missing if chosen[image]]
        if missing:
            with steps("evaluate", items, remaining=True) as progress:
                progress.start(f"{data_set.task} {data_set.name}: {subject.name}, matching head")
                progress.advance(items - len(missing))
                for answered, _ in workers.run(_jobs(subject, data_set, missing, chosen, texts_of)):
                    store.add(answered)
                    progress.advance(len(answered))
        for image in range(items):
            if chosen[image]:
                scores = store.get(image)["scores"]
                measures.reranked[image] = {
                    int(numbers[text]): score
                    for text, score in zip(chosen[image], scores, strict=True)
                }


def _candidates(images: NDArray[Any], texts: NDArray[Any], count: int) -> list[list[int]]:
    found: list[set[int]] = [set() for _ in images]
    for start in range(0, len(images), _ROWS_AT_ONCE):
        for row, scores in enumerate(images[start : start + _ROWS_AT_ONCE] @ texts.T):
            found[start + row].update(best_candidates(scores, count))
    by_image: dict[int, list[int]] = defaultdict(list)
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        for row, scores in enumerate(texts[start : start + _ROWS_AT_ONCE] @ images.T):
            for image in best_candidates(scores, count):
                by_image[image].append(start + row)
    for image, more in by_image.items():
        found[image].update(more)
    return [sorted(candidates) for candidates in found]


class _TextLookup:
    """The words of a text, from the first image that has it."""

    def __init__(self, data_set: DataSet, numbers: list[int], owners: list[int]) -> None:
        self._data_set = data_set
        self._numbers = numbers
        self._owners = owners

    def __call__(self, index: int) -> str:
        (item,) = self._data_set.items(self._owners[index], self._owners[index] + 1)
        if isinstance(item, MatchingItem):
            for text in item.texts:
                if text_number(text) == self._numbers[index]:
                    return text
        raise KeyError(index)


def _jobs(
    subject: Subject,
    data_set: DataSet,
    missing: list[int],
    chosen: list[list[int]],
    texts_of: _TextLookup,
) -> Iterator[Job]:
    for start in range(0, len(missing), _IMAGES_PER_JOB):
        part = missing[start : start + _IMAGES_PER_JOB]
        judged = tuple((image, tuple(texts_of(text) for text in chosen[image])) for image in part)
        yield Job(subject, data_set, part[0], part[-1] + 1, judged)
