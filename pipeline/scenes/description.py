"""What a scene means: the attributes that captions, questions and matching texts speak of."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]
Kind = Literal["single", "pair", "group", "mixed"]
Axis = Literal["none", "horizontal", "vertical"]
Size = Literal["small", "medium", "large"]

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "white")
SIZES: tuple[Size, ...] = ("small", "large")
BACKGROUNDS: tuple[str, ...] = ("plain", "striped", "checkered", "dotted")

HELDOUT_PERCENT = 20
"""Share of all captions, in percent, that belong to the held-out split."""

_KINDS: tuple[Kind, ...] = ("single", "pair", "pair", "pair", "group", "mixed", "mixed")
_AXES: tuple[Axis, ...] = ("horizontal", "vertical")


@dataclass(frozen=True)
class Phrase:
    """One noun phrase: ``count`` equal shapes. A ``medium`` size is never mentioned."""

    count: int
    size: Size
    color: str
    shape: str


@dataclass(frozen=True)
class Description:
    """The canonical meaning of a scene; phrases are ordered left first, or top first."""

    kind: Kind
    axis: Axis
    phrases: tuple[Phrase, ...]
    background: str

    @property
    def total(self) -> int:
        """How many shapes there are in all."""
        return sum(phrase.count for phrase in self.phrases)


def seeded(name: str) -> random.Random:
    """Return a source of random numbers that depends on ``name`` alone."""
    return random.Random(name)


def split_of_caption(text: str) -> Split:
    """Return the split to which a caption, and so every scene that it describes, belongs."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return "heldout" if int.from_bytes(digest[:4], "big") % 100 < HELDOUT_PERCENT else "train"


def sample_description(source: random.Random) -> Description:
    """Draw a random description (of either split)."""
    kind = source.choice(_KINDS)
    axis: Axis = "none" if kind == "single" else source.choice(_AXES)
    background = source.choice(BACKGROUNDS)
    if kind in ("single", "group"):
        count = 1 if kind == "single" else source.choice((2, 3))
        only = Phrase(count, source.choice(SIZES), source.choice(COLORS), source.choice(SHAPES))
        return Description(kind, axis, (only,), background)
    counts = (1, 1) if kind == "pair" else source.choice(((1, 2), (2, 1)))
    sizes = [source.choice(SIZES) if kind == "pair" else "medium" for _ in counts]
    while True:
        looks = [(source.choice(COLORS), source.choice(SHAPES)) for _ in counts]
        if looks[0] != looks[1]:
            break
    phrases = tuple(
        Phrase(count, size, color, shape)
        for count, size, (color, shape) in zip(counts, sizes, looks, strict=True)
    )
    return Description(kind, axis, phrases, background)
