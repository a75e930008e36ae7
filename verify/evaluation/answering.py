"""Asks one subject: items in, answers that can be stored out."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from configs.layout import Layout
from verify.artifacts import runtime_failures
from verify.checkpoint.answers import MatchFeatures, answer, features_by_image, match_features
from verify.checkpoint.checkpoint import Checkpoint
from verify.checkpoint.choosing import choose
from verify.evaluation.answer_store import Answer
from verify.evaluation.items import CaptionItem, Item, MatchingItem
from verify.evaluation.subjects import Subject
from verify.opened import TaskBench

#: Token ids of the whole sequence, how many of them are the prompt, and the text after it.
Generated = tuple[Sequence[int], int, str]


class Answerer(ABC):
    """An opened subject.

    A generated answer is ``{"tokens", "prompt", "text"}``: the whole sequence, how many of its
    tokens are the prompt, and the text after it. A match is ``{"image", "texts", "logits"}``:
    features, packed, and the two logits of each pair.
    """

    def __init__(self, subject: Subject) -> None:
        self._task, self._new_tokens = subject.task.task, subject.new_tokens
        self._answers, self._candidates = subject.answers, subject.candidates

    def answers(self, items: Sequence[Item]) -> list[Answer]:
        """Answers in the order of the items.

        Raises:
            InputError: an image or text cannot be used.
            ToolError: the backend failed.
        """
        if self._task == "itm":
            matched = [item for item in items if isinstance(item, MatchingItem)]
            images = [item.picture.load() for item in matched]
            pairs = [[text for text, _ in item.pairs] for item in matched]
            found = self._match(images, [item.texts for item in matched], pairs)
            return [
                {
                    "image": pack(one.image),
                    "texts": pack(one.texts),
                    "logits": [[float(a), float(b)] for a, b in one.logits],
                }
                for one in found
            ]
        return [
            {"tokens": [int(token) for token in tokens], "prompt": prompt, "text": text}
            for tokens, prompt, text in self._generate(items)
        ]

    def judge(self, image: Image, texts: Sequence[str]) -> list[float]:
        """How much better "fits" scores than "does not" for each text, in logits (matching)."""
        (found,) = self._match([image], [()], [texts])
        return [float(fits - other) for other, fits in found.logits]

    @abstractmethod
    def _generate(self, items: Sequence[Item]) -> Iterator[Generated]:
        """The answers to captions or questions."""

    @abstractmethod
    def _match(
        self,
        images: Sequence[Image],
        texts: Sequence[Sequence[str]],
        pairs: Sequence[Sequence[str]],
    ) -> list[MatchFeatures]:
        """Features of each image and of its texts, and the logits of the texts in its pairs."""

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
        super().__init__(subject)
        if subject.artifacts is None:
            raise ValueError("the checkpoint is not a target")
        with ExitStack() as stack:
            bench = TaskBench(subject.task, subject.pipeline, threads=threads)
            stack.callback(bench.close)
            self._opened: Any = bench.runtime_task(subject.artifacts, subject.mode)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def _generate(self, items: Sequence[Item]) -> Iterator[Generated]:
        tokenizer = self._opened.tokenizer
        options: dict[str, Any] = {"max_new_tokens": self._new_tokens}
        if self._answers:
            options = {"answers": self._answers, "answer_candidates": self._candidates}
        # Questions about one image follow each other: it is encoded once for them.
        groups = [list(group) for _, group in groupby(items, lambda item: item.picture)]
        images = [group[0].picture.load() for group in groups]
        texts = [[_text(item) for item in group] for group in groups]
        with runtime_failures():
            found = self._opened.pairs(images, texts, **options)
            for own, answers in zip(texts, found, strict=True):
                for text, one in zip(own, answers, strict=True):
                    prompt = len(tokenizer.prompt(text)) if self._task == "caption" else 1
                    yield one.token_ids, prompt, tokenizer.decode(one.token_ids[prompt:])

    def _match(
        self,
        images: Sequence[Image],
        texts: Sequence[Sequence[str]],
        pairs: Sequence[Sequence[str]],
    ) -> list[MatchFeatures]:
        task, flat = self._opened, [text for own in texts for text in own]
        asked = [(row, text) for row, own in enumerate(pairs) for text in own]
        logits = np.zeros((0, 2))
        with runtime_failures():
            embeds = task.encode(images)
            of_images = task.image_features(embeds)
            of_texts = task.text_features(flat) if flat else np.zeros((0, of_images.shape[1]))
            if asked:
                rows = [row for row, _ in asked]
                logits = task.itm_logits(embeds, [text for _, text in asked], rows)
        return features_by_image(of_images, (of_texts, texts), (logits, pairs))


class _CheckpointAnswerer(Answerer):
    def __init__(self, subject: Subject, threads: int | None) -> None:
        super().__init__(subject)
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        revision = subject.task.manifest.checkpoint.revision
        self._checkpoint = Checkpoint(Layout(subject.pipeline), self._task, revision)

    def close(self) -> None:
        del self._checkpoint

    def _generate(self, items: Sequence[Item]) -> Iterator[Generated]:
        images, texts = [item.picture.load for item in items], [_text(item) for item in items]
        if self._answers:
            shown = [load() for load in images]
            for tokens in choose(self._checkpoint, shown, texts, self._answers, self._candidates):
                yield tokens, 1, self._checkpoint.decode(tokens[1:])
            return
        for found in answer(self._checkpoint, images, texts, self._new_tokens):
            text = self._checkpoint.decode(found.tokens[found.prompt :])
            yield found.tokens, found.prompt, text

    def _match(
        self,
        images: Sequence[Image],
        texts: Sequence[Sequence[str]],
        pairs: Sequence[Sequence[str]],
    ) -> list[MatchFeatures]:
        # Own texts first, then texts to judge that are not among them.
        asked = [list(dict.fromkeys((*own, *more))) for own, more in zip(texts, pairs, strict=True)]
        every = match_features(self._checkpoint, images, asked)
        return [
            MatchFeatures(
                found.image,
                found.texts[: len(own)],
                found.logits[[known.index(text) for text in more]],
            )
            for found, known, own, more in zip(every, asked, texts, pairs, strict=True)
        ]


def _text(item: Item) -> str:
    if isinstance(item, MatchingItem):
        raise TypeError(item.name)
    return item.prompt if isinstance(item, CaptionItem) else item.question
