"""Static shapes: which nets a component is compiled into for chips, and their lengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from configs.errors import ToolError
from configs.manifest import TensorSpec
from configs.schema import Component, StaticShapes, Task


@dataclass(frozen=True)
class NetShape:
    """One net and the length of every dynamic axis in it."""

    name: str
    axes: Mapping[str, int]


def net_names(task: Task, component: Component) -> tuple[str, ...]:
    """Nets of a component on a chip.

    A vqa decoder starts from one token, [DEC], so its step serves as first pass, too.
    """
    if component != "text_decoder":
        return ("main",)
    return ("first_pass", "step") if task == "caption" else ("step",)


def net_shapes(
    task: Task, component: Component, shapes: StaticShapes, image_tokens: int
) -> tuple[NetShape, ...]:
    """Lengths of every axis name that the exported graphs use (docs/manifest.md)."""
    past = shapes.past_tokens or 0
    result = []
    for name in net_names(task, component):
        text = 1 if name == "step" else shapes.text_tokens
        axes = {
            "batch": shapes.batch,
            "text_tokens": text,
            "past_tokens": past,
            "total_tokens": past + text,
            # Encoder states are image tokens when captioning, question tokens when answering.
            "encoder_tokens": image_tokens if task == "caption" else shapes.text_tokens,
        }
        result.append(NetShape(name, axes))
    return tuple(result)


def bind(tensors: Iterable[TensorSpec], axes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Shapes with every axis name replaced by its length.

    Raises:
        ToolError: an axis name that has no length here.
    """
    bound = {}
    for tensor in tensors:
        sizes = []
        for axis in tensor.shape:
            if isinstance(axis, str) and axis not in axes:
                raise ToolError(
                    f"{tensor.name}: axis {axis!r} has no static length; "
                    f"known axes: {', '.join(sorted(axes))}"
                )
            sizes.append(axes[axis] if isinstance(axis, str) else axis)
        bound[tensor.name] = tuple(sizes)
    return bound
