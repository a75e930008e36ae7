"""Static shapes: which nets a component is compiled into for chips, and their lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from configs.errors import ToolError
from configs.schema import Component, ShapeVariants, StaticShapes, Task
from pipeline.manifest import TensorSpec

#: Ends the name of a variant: the length, then which axis it is of.
_LETTERS = {"batch": "b", "text_tokens": "t", "past_tokens": "p"}
#: Tokens that a call of each net takes.
_TOKENS: dict[str, Callable[[StaticShapes], int]] = {
    "main": lambda shapes: shapes.text_tokens,
    "first_pass": lambda shapes: shapes.first_pass_tokens,
    "step": lambda _: 1,
}


@dataclass(frozen=True)
class NetShape:
    """One net and the length of every dynamic axis in it."""

    #: unique within the component: the net's own name, or that of a variant
    name: str
    axes: Mapping[str, int]
    #: the net that this is a variant of; its own name where it is none
    net: str

    @property
    def is_variant(self) -> bool:
        """Whether this is a further shape of a net, not its main one."""
        return self.name != self.net


def net_names(task: Task, component: Component) -> tuple[str, ...]:
    """Nets of a component on a chip, variants left out.

    A vqa decoder starts from one token, [DEC], so its step serves as first pass, too.
    """
    if component != "text_decoder":
        return ("main",)
    return ("first_pass", "step") if task == "caption" else ("step",)


def net_in_file(component: Component, net: str) -> str:
    """What a net is called inside a BModel."""
    return component if net == "main" else f"{component}_{net}"


def net_shapes(
    task: Task, component: Component, shapes: StaticShapes, image_tokens: int
) -> tuple[NetShape, ...]:
    """Lengths of every axis name that the exported graphs use (docs/manifest.md).

    Every net in its main shape comes first, then its variants.
    """
    found = []
    for net in net_names(task, component):
        varied = varied_axes(task, component, net, shapes.variants)
        main = {
            "batch": shapes.batch,
            "text_tokens": _TOKENS[net](shapes),
            "past_tokens": shapes.past_tokens or 0,
        }
        choices = [(main[axis], *lengths) for axis, lengths in varied.items()]
        for chosen in product(*choices):
            lengths = dict(zip(varied, chosen, strict=True))
            others = {axis: length for axis, length in lengths.items() if length != main[axis]}
            suffix = "".join(f"_{length}{_LETTERS[axis]}" for axis, length in others.items())
            axes = {**main, **lengths}
            axes["total_tokens"] = axes["past_tokens"] + axes["text_tokens"]
            # Encoder states are image tokens when captioning, question tokens when answering.
            # Those of a shorter question are padded to the longest: the decoder masks them.
            axes["encoder_tokens"] = image_tokens if task == "caption" else shapes.text_tokens
            found.append(NetShape(f"{net}{suffix}", axes, net))
    return tuple(found)


def varied_axes(
    task: Task, component: Component, net: str, variants: ShapeVariants
) -> dict[str, tuple[int, ...]]:
    """Axes of a net that have further lengths, and those lengths."""
    axes: dict[str, tuple[int, ...]] = {}
    if net == "step":
        axes = {"past_tokens": variants.past_tokens, "batch": variants.beams}
    elif net == "first_pass" or component.startswith("text_encoder"):
        axes = {"text_tokens": variants.text_tokens}
    elif component.startswith("vision") or task == "caption":
        axes = {"batch": variants.batch}
    return {axis: lengths for axis, lengths in axes.items() if lengths}


def largest_first(shapes: Iterable[NetShape]) -> list[NetShape]:
    """Stages of one net in the order of a file: the driver takes its buffers from the first.

    Every combination of lengths is there, so the first one is the largest in every tensor.
    """
    return sorted(shapes, key=lambda shape: sum(shape.axes.values()), reverse=True)


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
