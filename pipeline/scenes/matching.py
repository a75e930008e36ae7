"""Image-text matching: the right caption and hard negatives that differ in one thing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.scenes.description import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    Axis,
    Description,
    Phrase,
    seeded,
    split_of_caption,
)
from pipeline.scenes.language import describe
from pipeline.scenes.scene import Scene


@dataclass(frozen=True)
class MatchingPair:
    """A text, whether it describes the scene, and what was changed (``right`` for nothing)."""

    text: str
    match: bool
    kind: str = "right"


def matching_pairs(scene: Scene) -> list[MatchingPair]:
    """Return the right text first, then one hard negative of every kind that applies.

    The negatives of a training scene are captions of the training split as well: a held-out
    caption appears nowhere in training, not even as a wrong text.
    """
    source = seeded(f"matching {scene.seed}")
    right = describe(scene.description)
    pairs = [MatchingPair(right, True)]
    by_kind: dict[str, list[str]] = {}
    for kind, changed in _changes(scene.description):
        text = describe(changed)
        allowed = scene.split == "heldout" or split_of_caption(text) == "train"
        if text != right and allowed:
            by_kind.setdefault(kind, []).append(text)
    for kind, texts in by_kind.items():
        pairs.append(MatchingPair(source.choice(texts), False, kind))
    return pairs


def _changes(description: Description) -> Iterator[tuple[str, Description]]:
    """Yield (kind of change, changed description) for every change of one thing."""
    phrases = description.phrases
    for position, phrase in enumerate(phrases):
        for color in COLORS:
            if color != phrase.color:
                yield "color", _with_phrase(description, position, replace(phrase, color=color))
        for shape in SHAPES:
            if shape != phrase.shape:
                yield "shape", _with_phrase(description, position, replace(phrase, shape=shape))
        if phrase.size == "small":
            yield "size", _with_phrase(description, position, replace(phrase, size="large"))
        elif phrase.size == "large":
            yield "size", _with_phrase(description, position, replace(phrase, size="small"))
    other_axis: Axis = "vertical" if description.axis == "horizontal" else "horizontal"
    if description.kind == "single":
        for background in BACKGROUNDS:
            yield "background", replace(description, background=background)
        two = (replace(phrases[0], count=2),)
        for axis in ("horizontal", "vertical"):
            yield "count", Description("group", axis, two, description.background)
    elif description.kind == "group":
        yield "axis", replace(description, axis=other_axis)
        count = 5 - phrases[0].count
        yield "count", replace(description, phrases=(replace(phrases[0], count=count),))
    else:
        first, second = phrases
        yield "axis", replace(description, axis=other_axis)
        yield "order", replace(description, phrases=(second, first))
        crossed = (replace(first, color=second.color), replace(second, color=first.color))
        yield "crossed", replace(description, phrases=crossed)
        if description.kind == "mixed":
            counts = (replace(first, count=second.count), replace(second, count=first.count))
            yield "count", replace(description, phrases=counts)


def _with_phrase(description: Description, position: int, phrase: Phrase) -> Description:
    """Return the description with one phrase replaced."""
    phrases = list(description.phrases)
    phrases[position] = phrase
    return replace(description, phrases=tuple(phrases))
