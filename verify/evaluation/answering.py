"""Asks one subject: items in, answers that can be stored out."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from configs.schema import Task
from runtime.tasks.generating import Captioner, QuestionAnswerer
from runtime.tasks.matching import Matcher
from verify.artifacts import runtime_failures
from verify.checkpoint.reference_model import MatchFeatures, Reference
from verify.evaluation.answer_store import Answer
from verify.evaluation.items import CaptionItem, Item, MatchingItem, QuestionItem
from verify.evaluation.subjects import Subject
from verify.opened import TaskBench


class Answerer(ABC):
    """An opened subject.

    A generated answer is ``{"tokens", "prompt", "text"}``: the whole sequence, how many of its
    tokens are the prompt, and the text after it. A match is ``{"image", "texts", "logits"}``:
    features, packed, and the two logits of each pair.
    """

    @abstractmethod
    def answers(self, items: Sequence[Item]) -> list[Answer]:
        """Answers in the order of the items.

        Raises:
            InputError: an image or text cannot be used.
            ToolError: the backend failed.
        """

    @abstractmethod
    def judge(self, image: Image, texts: Sequence[str]) -> list[float]:
        """How much better "fits" scores than "does not" for each text, in logits (matching)."""

    @abstractmethod
    def close(self) -> None:
        """Releases what the backend holds."""


def open_answerer(subject: Subject, threads: int | None) -> Answerer:
    """Opens a subject with so many processor threads (None: the backend's choice)."""
    if subject.artifacts is None:
        return _CheckpointAnswerer(subject, threads)
    return _TargetAnswerer(subject, threads)


def pack(features: NDArray[Any]) -> str:
    """Float32 features as text."""
    return base64.b64encode(np.ascontiguousarray(features, dtype=np.float32).tobytes()).decode()


def unpack(text: str) -> NDArray[np.float32]:
    """The features ``[values]`` that ``pack`` made a text of."""
    return np.frombuffer(base64.b64decode(text), dtype=np.float32)


class _TargetAnswerer(Answerer):
    def __init__(self, subject: Subject, threads: int | None) -> None:
        if subject.artifacts is None:
            raise ValueError("the checkpoint is not a target")
        self._subject = subject
        with ExitStack() as stack:
            bench = TaskBench(subject.task, subject.pipeline, threads=threads)
            stack.callback(bench.close)
            self._task = bench.runtime_task(subject.artifacts, subject.mode)
            self._stack = stack.pop_all()

    def answers(self, items: Sequence[Item]) -> list[Answer]:
        with runtime_failures():
            if isinstance(self._task, Captioner):
                return self._captions(self._task, [i for i in items if isinstance(i, CaptionItem)])
            if isinstance(self._task, QuestionAnswerer):
                asked = [i for i in items if isinstance(i, QuestionItem)]
                return self._answered(self._task, asked)
            matched = [i for i in items if isinstance(i, MatchingItem)]
            return self._matches(self._matcher(), matched)

    def judge(self, image: Image, texts: Sequence[str]) -> list[float]:
        with runtime_failures():
            embeds = self._matcher().encode([image])
            logits = self._matcher().itm_logits(embeds, texts, [0] * len(texts))
        return [float(fits - other) for other, fits in logits]

    def close(self) -> None:
        self._stack.close()

    def _matcher(self) -> Matcher:
        if not isinstance(self._task, Matcher):
            raise TypeError(f"{self._subject.name}: does not match")
        return self._task

    def _captions(self, task: Captioner, items: Sequence[CaptionItem]) -> list[Answer]:
        prompts = [item.prompt for item in items]
        found = task.batch(
            [item.picture.load() for item in items],
            prompts,
            max_new_tokens=self._subject.new_tokens,
        )
        lengths = [len(task.tokenizer.prompt(prompt)) for prompt in prompts]
        return [
            _generated(caption.token_ids, length, task.tokenizer.decode(caption.token_ids[length:]))
            for caption, length in zip(found, lengths, strict=True)
        ]

    def _answered(self, task: QuestionAnswerer, items: Sequence[QuestionItem]) -> list[Answer]:
        # Questions about one image follow each other: it is encoded once for them.
        groups = [list(group) for _, group in groupby(items, lambda item: item.picture)]
        found = task.batch(
            [group[0].picture.load() for group in groups],
            [[item.question for item in group] for group in groups],
            max_new_tokens=self._subject.new_tokens,
        )
        return [
            _generated(answer.token_ids, 1, task.tokenizer.decode(answer.token_ids[1:]))
            for answers in found
            for answer in answers
        ]

    def _matches(self, task: Matcher, items: Sequence[MatchingItem]) -> list[Answer]:
        embeds = task.encode([item.picture.load() for item in items])
        image_features = task.image_features(embeds)
        texts = [text for item in items for text in item.texts]
        text_features = task.text_features(texts) if texts else np.zeros((0, 0))
        pairs = [(row, text) for row, item in enumerate(items) for text, _ in item.pairs]
        logits = (
            task.itm_logits(embeds, [text for _, text in pairs], [row for row, _ in pairs])
            if pairs
            else np.zeros((0, 2))
        )
        answers = []
        for row, item in enumerate(items):
            texts_of, text_features = np.split(text_features, [len(item.texts)])
            logits_of, logits = np.split(logits, [len(item.pairs)])
            answers.append(_match(MatchFeatures(image_features[row], texts_of, logits_of)))
        return answers


@dataclass(frozen=True)
class _Question:
    """An item as the checkpoint is asked."""

    task: Task
    text: str
    item: CaptionItem | QuestionItem

    def image(self) -> Image:
        return self.item.picture.load()


class _CheckpointAnswerer(Answerer):
    def __init__(self, subject: Subject, threads: int | None) -> None:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        self._subject = subject
        task = subject.task
        self._reference = Reference(subject.pipeline.tasks[task.task], task.manifest)

    def answers(self, items: Sequence[Item]) -> list[Answer]:
        if self._subject.task.task == "itm":
            return self._matches([i for i in items if isinstance(i, MatchingItem)])
        asked = []
        for item in items:
            if isinstance(item, CaptionItem):
                asked.append(_Question("caption", item.prompt, item))
            elif isinstance(item, QuestionItem):
                asked.append(_Question("vqa", item.question, item))
        return [
            _generated(
                answer.tokens, answer.prompt, self._reference.decode(answer.tokens[answer.prompt :])
            )
            for answer in self._reference.answers(asked, self._subject.new_tokens)
        ]

    def judge(self, image: Image, texts: Sequence[str]) -> list[float]:
        (found,) = self._reference.match_features([image], [texts])
        return [float(fits - other) for other, fits in found.logits]

    def close(self) -> None:
        del self._reference

    def _matches(self, items: Sequence[MatchingItem]) -> list[Answer]:
        images = [item.picture.load() for item in items]
        # Own texts first, then texts to judge that are not among them.
        asked = [tuple(dict.fromkeys((*i.texts, *(text for text, _ in i.pairs)))) for i in items]
        found = self._reference.match_features(images, asked)
        answers = []
        for item, texts, features in zip(items, asked, found, strict=True):
            rows = [texts.index(text) for text, _ in item.pairs]
            answers.append(
                _match(
                    MatchFeatures(
                        features.image, features.texts[: len(item.texts)], features.logits[rows]
                    )
                )
            )
        return answers


def _generated(tokens: Sequence[int], prompt: int, text: str) -> Answer:
    return {"tokens": [int(token) for token in tokens], "prompt": prompt, "text": text}


def _match(found: MatchFeatures) -> Answer:
    return {
        "image": pack(found.image),
        "texts": pack(found.texts),
        "logits": [[float(a), float(b)] for a, b in found.logits],
    }
