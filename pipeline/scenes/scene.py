"""Scenes: a description, laid out on a canvas."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.scenes.description import (
    Description,
    Size,
    Split,
    sample_description,
    seeded,
    split_of_caption,
)
from pipeline.scenes.language import describe

SCENES_VERSION = 1
"""Part of every seed; raise it when the meaning of an index changes."""

RADIUS: dict[Size, float] = {"small": 0.095, "medium": 0.135, "large": 0.165}
"""Radius of a shape as a fraction of the geometric mean of the canvas sides."""


@dataclass(frozen=True)
class SceneObject:
    """One drawn shape: centre (fractions of the canvas), radius (pixels), rotation (degrees)."""

    shape: str
    color: str
    size: Size
    x: float
    y: float
    radius: float
    rotation: float


@dataclass(frozen=True)
class Scene:
    """One scene: what it means (``description``) and where everything is (``objects``)."""

    index: int
    split: Split
    description: Description
    objects: tuple[SceneObject, ...]
    width: int
    height: int
    seed: int

    @property
    def background(self) -> str:
        """The kind of the background."""
        return self.description.background


def caption(scene: Scene) -> str:
    """Return the one right caption of a scene (lower case, at most eleven words)."""
    return describe(scene.description)


def make_scene(index: int, split: Split = "heldout") -> Scene:
    """Return scene number ``index`` of a split; the same arguments give the same scene."""
    if index < 0:
        raise ValueError(f"a scene index must not be negative, got {index}")
    source = seeded(f"blip-edge scenes {SCENES_VERSION} {split} {index}")
    while True:
        description = sample_description(source)
        if split_of_caption(describe(description)) == split:
            break
    width, height = _canvas(description, source)
    mean_side = math.sqrt(width * height)
    objects = []
    looks = [phrase for phrase in description.phrases for _ in range(phrase.count)]
    for phrase, (x, y) in zip(looks, _centres(description, source), strict=True):
        objects.append(
            SceneObject(
                shape=phrase.shape,
                color=phrase.color,
                size=phrase.size,
                x=x,
                y=y,
                radius=RADIUS[phrase.size] * mean_side * source.uniform(0.93, 1.0),
                rotation=source.uniform(-12.0, 12.0),
            )
        )
    return Scene(index, split, description, tuple(objects), width, height, source.getrandbits(63))


def scenes(count: int, split: Split = "heldout", start: int = 0) -> Iterator[Scene]:
    """Yield ``count`` scenes of a split, from index ``start`` on."""
    for index in range(start, start + count):
        yield make_scene(index, split)


def _canvas(description: Description, source: random.Random) -> tuple[int, int]:
    """Choose width and height in pixels; a group's row or column lies along the longer side."""
    ratio = source.uniform(1.0, 1.3)
    tall = source.random() < 0.5
    if description.kind == "group":
        tall = description.axis == "vertical"
    short = source.randint(120, 152)
    long = min(200, round(short * ratio))
    return (short, long) if tall else (long, short)


def _centres(description: Description, source: random.Random) -> list[tuple[float, float]]:
    """Lay the shapes out; returns (x, y) as fractions of the canvas, in the phrases' order."""
    if description.kind == "single":
        return [(source.uniform(0.25, 0.75), source.uniform(0.25, 0.75))]
    places: list[tuple[float, float]] = []  # (along the axis, across the axis)
    if description.kind == "group":
        across = source.uniform(0.3, 0.7)
        along = (0.28, 0.72) if description.total == 2 else (0.175, 0.5, 0.825)
        for place in along:
            places.append((place + source.uniform(-0.015, 0.015), across + _jitter(source, 0.03)))
    elif description.kind == "pair":
        across = source.uniform(0.32, 0.68)
        for place in (0.26, 0.74):
            places.append((place + _jitter(source, 0.04), across + _jitter(source, 0.09)))
    else:
        for phrase, place in zip(description.phrases, (0.26, 0.74), strict=True):
            spread = (0.5,) if phrase.count == 1 else (0.27, 0.73)
            for across in spread:
                places.append((place + _jitter(source, 0.04), across + _jitter(source, 0.05)))
    if description.axis == "vertical":
        return [(across, along) for along, across in places]
    return places


def _jitter(source: random.Random, amount: float) -> float:
    """Draw a uniform offset of at most ``amount`` either way."""
    return source.uniform(-amount, amount)
