"""Every sentence template of the scene set, in one place."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.scenes.description import Axis

NUMBERS: dict[int, str] = {0: "zero", 1: "one", 2: "two", 3: "three"}

SINGLE_CAPTIONS: dict[str, str] = {
    "plain": "{first} on a plain background",
    "striped": "{first} in front of stripes",
    "checkered": "{first} over a checkered pattern",
    "dotted": "{first} among many dots",
}
GROUP_CAPTIONS: dict[tuple[Axis, int], str] = {
    ("horizontal", 2): "{first} side by side",
    ("horizontal", 3): "{first} in a row",
    ("vertical", 2): "{first} one above the other",
    ("vertical", 3): "{first} in a column",
}
RELATION_CAPTIONS: dict[Axis, str] = {
    "horizontal": "{first} left of {second}",
    "vertical": "{first} above {second}",
}

COUNT_ALL: tuple[str, ...] = (
    "how many shapes?",
    "how many shapes are there?",
    "how many shapes can you see in this picture?",
    "please look at the whole picture and tell me how many shapes there are in it?",
)
COUNT_SHAPE: tuple[str, ...] = ("how many {shapes}?", "how many {shapes} are there in the picture?")
BACKGROUND: tuple[str, ...] = (
    "which background pattern?",
    "is the background plain, striped, checkered or dotted?",
    "what kind of pattern does the background behind the shapes in this picture have?",
)
COLOR_OF_SHAPE: tuple[str, ...] = (
    "what color is the {shape}?",
    "which color does the {shape} in the picture have?",
)
COLOR_OF_SHAPES: tuple[str, ...] = (
    "what color are the {shapes}?",
    "which color do the {shapes} in the picture have?",
)
COLOR_AT_PLACE: tuple[str, ...] = (
    "what color is {place}?",
    "in this picture, what is the color that you can see {place}?",
)
SHAPE_OF_COLOR: tuple[str, ...] = (
    "which shape is {color}?",
    "what is the name of the shape in this picture that is {color}?",
)
SHAPE_AT_PLACE: tuple[str, ...] = ("what shape is {place}?",)
SIZE_OF_SHAPE: tuple[str, ...] = (
    "what size is the {shape}?",
    "is the {color} {shape} in this picture small or large?",
)
THING_BESIDE: tuple[str, ...] = (
    "what is {relation} the {color} {shape}?",
    "if you look at the picture, what can you see {relation} the {color} {shape}?",
)
RELATION_HOLDS: tuple[str, ...] = (
    "is the {color} {shape} {relation} the {other_color} {other_shape}?",
    "in this picture, is the {color} {shape} {relation} the {other_color} {other_shape}?",
)
EXISTS: tuple[str, ...] = (
    "any {color} {shapes}?",
    "are there any {color} {shapes}?",
    "can you see any {color} {shapes} in this picture?",
)
ARRANGED: tuple[str, ...] = (
    "row or column?",
    "are the {shapes} in a row or in a column?",
)

PLACES: dict[Axis, tuple[str, str]] = {
    "horizontal": ("on the left", "on the right"),
    "vertical": ("at the top", "at the bottom"),
}
RELATIONS: dict[Axis, tuple[str, str]] = {
    "horizontal": ("left of", "right of"),
    "vertical": ("above", "below"),
}
"""How the first phrase lies relative to the second, and the second to the first."""

OTHER_ANSWERS: tuple[str, ...] = ("yes", "no", "row", "column")


def every_template() -> Iterator[str]:
    """Yield every template and every fixed fragment, fields included."""
    yield from SINGLE_CAPTIONS.values()
    yield from GROUP_CAPTIONS.values()
    yield from RELATION_CAPTIONS.values()
    for templates in (
        COUNT_ALL,
        COUNT_SHAPE,
        BACKGROUND,
        COLOR_OF_SHAPE,
        COLOR_OF_SHAPES,
        COLOR_AT_PLACE,
        SHAPE_OF_COLOR,
        SHAPE_AT_PLACE,
        SIZE_OF_SHAPE,
        THING_BESIDE,
        RELATION_HOLDS,
        EXISTS,
        ARRANGED,
        OTHER_ANSWERS,
        *PLACES.values(),
        *RELATIONS.values(),
    ):
        yield from templates
