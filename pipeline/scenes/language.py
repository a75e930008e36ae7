"""Captions: exactly one right sentence per description, and the vocabulary of the scene set."""

from __future__ import annotations

import re

from pipeline.scenes import phrasing
from pipeline.scenes.description import BACKGROUNDS, COLORS, SHAPES, SIZES, Description, Phrase

CAPTION_PROMPT = "a picture of"
"""The prompt with which the caption checkpoint is also trained."""


def describe(description: Description) -> str:
    """Return the caption of a description; its wording depends on the meaning only."""
    first = noun_phrase(description.phrases[0])
    if description.kind == "single":
        return phrasing.SINGLE_CAPTIONS[description.background].format(first=first)
    if description.kind == "group":
        template = phrasing.GROUP_CAPTIONS[description.axis, description.total]
        return template.format(first=first)
    second = noun_phrase(description.phrases[1])
    return phrasing.RELATION_CAPTIONS[description.axis].format(first=first, second=second)


def noun_phrase(phrase: Phrase) -> str:
    """Return for example ``a small red circle``, ``an orange ring`` or ``two blue stars``."""
    words = [] if phrase.size == "medium" else [str(phrase.size)]
    words += [phrase.color, shape_word(phrase)]
    if phrase.count > 1:
        return " ".join([phrasing.NUMBERS[phrase.count], *words])
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def shape_word(phrase: Phrase) -> str:
    """Return the shape's name, in the plural where the phrase counts more than one."""
    return phrase.shape if phrase.count == 1 else plural(phrase.shape)


def plural(shape: str) -> str:
    """Return the plural of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")


def vocabulary() -> list[str]:
    """Return every word and punctuation mark that the scene set can use, sorted."""
    texts = [CAPTION_PROMPT, *phrasing.every_template(), *phrasing.NUMBERS.values()]
    texts += [*SHAPES, *(plural(shape) for shape in SHAPES), *COLORS, *SIZES, *BACKGROUNDS]
    words: set[str] = {"a", "an"}
    for text in texts:
        without_fields = re.sub(r"\{[^}]*\}", " ", text)
        words.update(re.findall(r"[a-z]+|[^\sa-z]", without_fields))
    return sorted(words)
