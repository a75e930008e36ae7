"""What an evaluation goes through: items of a data set, each with an image and its truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

import runtime.errors as runtime_errors
from configs.errors import InputError
from configs.schema import DataSetKind, Task
from pipeline.manifest import key_of
from pipeline.scenes import caption, make_scene, matching_pairs
from pipeline.scenes.scene import SCENES_VERSION
from runtime.preprocessing.images import load_image
from verify.answers.cases import SEED_STRIDE, generation_cases, picture

#: Version of the choice of scenes' questions and wrong texts below.
_SCENE_ITEMS_VERSION = 1


@dataclass(frozen=True)
class Picture:
    """An image: a held-out scene, or a file."""

    scene: int | None = None
    path: Path | None = None
    #: where the data set names it, as ``file: key``
    place: str = ""

    def load(self) -> Image:
        """The image, upright RGB.

        Raises:
            InputError: missing or damaged; says where the data set names it.
        """
        if self.path is None:
            return picture(self.scene or 0)
        try:
            return load_image(self.path)
        except runtime_errors.BlipEdgeError as error:
            raise InputError(f"{self.place}: {error}") from None

    def stamp(self) -> str:
        """Tells a changed file from the one that stored answers are about.

        Raises:
            InputError: the file is missing.
        """
        if self.path is None:
            return ""
        try:
            status = self.path.stat()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{self.place}: {self.path}: {reason}; restore the image or remove the entry"
            ) from None
        return f"{status.st_size}.{status.st_mtime_ns}"


@dataclass(frozen=True)
class CaptionItem:
    """An image to caption, and right captions of it."""

    name: str
    picture: Picture
    prompt: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class QuestionItem:
    """A question about an image, and the annotators' answers."""

    name: str
    picture: Picture
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class MatchingItem:
    """An image, the texts that belong to it, and texts to accept or reject."""

    name: str
    picture: Picture
    #: for retrieval; may be empty
    texts: tuple[str, ...]
    #: text and whether it matches
    pairs: tuple[tuple[str, bool], ...]


Item = CaptionItem | QuestionItem | MatchingItem


@dataclass(frozen=True)
class DataSet:
    """A data set of one task."""

    task: Task
    kind: DataSetKind
    #: part of the result's file name
    name: str
    #: what a person reads: where it comes from
    source: str
    #: digest of everything that decides its items
    identity: str
    #: how many items there are
    available: int
    #: the item of a number, counted from 0
    item: Callable[[int], Item]

    def first(self, count: int) -> Iterator[Item]:
        """The first items, in order."""
        return map(self.item, range(count))


def scenes(task: Task, seed: int = 0, name: str = "scenes") -> DataSet:
    """Held-out scenes, drawn when needed; captions and questions are those ``verify`` compares."""
    first = seed * SEED_STRIDE
    identity = {"scenes": SCENES_VERSION, "items": _SCENE_ITEMS_VERSION, "task": task, "s": seed}
    return DataSet(
        task=task,
        kind="scenes",
        name=name,
        source=f"held-out scenes from {first} on",
        identity=key_of(identity),
        # They never end; so many are more than anybody asks for.
        available=1_000_000,
        item=lambda number: _scene_item(task, first + number),
    )


def _scene_item(task: Task, index: int) -> Item:
    name, shown = f"scene {index}", Picture(scene=index)
    if task == "itm":
        pairs = matching_pairs(make_scene(index))
        wrong = pairs[1 + index % (len(pairs) - 1)]
        both = ((pairs[0].text, True), (wrong.text, False))
        return MatchingItem(name, shown, (pairs[0].text,), both)
    (case,) = generation_cases(task, 1, 0, first=index)
    if task == "caption":
        return CaptionItem(name, shown, case.text, (caption(make_scene(index)),))
    return QuestionItem(name, shown, case.text, (str(case.truth),))
