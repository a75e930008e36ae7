"""Which module exports which component, and which weights decide what it contains.

Free of torch, so that an unchanged pipeline is recognised without loading it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from configs.schema import TASK_COMPONENTS, Component, Task

if TYPE_CHECKING:
    from export.component import ComponentModule


@dataclass(frozen=True)
class Entry:
    """What decides a component's content; its module is ``export.components.<component>``."""

    #: regular expression over the checkpoint's parameter names
    weights: str
    #: components whose outputs feed the reference inputs
    fed_by: tuple[Component, ...] = ()
    #: what the reference inputs are made of
    reads: tuple[Literal["image", "text"], ...] = ("image", "text")


REGISTRY: dict[Component, Entry] = {
    "vision_encoder": Entry(r"vision_model\.", reads=("image",)),
    "text_encoder": Entry(r"(text_encoder|itm_head)\.", ("vision_encoder",)),
    "text_encoder_unimodal": Entry(
        r"(text_encoder\.(?!.*\.crossattention\.)|text_proj\.)", reads=("text",)
    ),
    "vision_projection": Entry(r"vision_proj\.", ("vision_encoder",), reads=("image",)),
    "cross_key_values": Entry(
        r"text_decoder\..*\.crossattention\.self\.(key|value)\.",
        ("vision_encoder", "text_encoder"),
    ),
    "text_decoder": Entry(
        r"text_decoder\.(?!.*\.crossattention\.self\.(key|value)\.)",
        ("vision_encoder", "text_encoder", "cross_key_values"),
    ),
}


def load(component: Component) -> ComponentModule:
    """Imports a component's module (and torch with it)."""
    module: ComponentModule = import_module(f"export.components.{component}")
    return module


def parameters_of(component: Component, task: Task, names: Iterable[str]) -> list[str]:
    """Checkpoint parameters that decide a component's graph and reference data, sorted."""
    involved = [component, *(c for c in REGISTRY[component].fed_by if c in TASK_COMPONENTS[task])]
    patterns = [re.compile(REGISTRY[c].weights) for c in involved]
    return sorted(name for name in names if any(pattern.match(name) for pattern in patterns))
