"""What an evaluation goes through: items of a data set, each with an image and its truth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

import runtime.errors as runtime_errors
from configs.errors import InputError
from configs.schema import DataSetKind, Task
from runtime.preprocessing.images import load_image
from verify.answers.cases import picture


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
        except OSError as error:
            raise InputError(
                f"{self.place}: {self.path}: {error.strerror or error}; "
                "restore the image or remove the entry"
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


class DataSet(ABC):
    """A data set of one task. Small to send to another process; items are made when asked for."""

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

    @abstractmethod
    def items(self, start: int, stop: int) -> Iterator[Item]:
        """Items number ``start`` up to ``stop``, in order.

        Raises:
            InputError: the data set changed or became unreadable.
        """
