"""Names of tasks and components: what is checked before anything is installed needs them, too."""

from __future__ import annotations

from typing import Literal

Task = Literal["caption", "vqa", "itm"]
Component = Literal[
    "vision_encoder",
    "text_encoder",
    "text_encoder_unimodal",
    "vision_projection",
    "cross_key_values",
    "text_decoder",
]

#: Components of each task in data-flow order (docs/manifest.md).
TASK_COMPONENTS: dict[Task, tuple[Component, ...]] = {
    "caption": ("vision_encoder", "cross_key_values", "text_decoder"),
    "vqa": ("vision_encoder", "text_encoder", "cross_key_values", "text_decoder"),
    "itm": ("vision_encoder", "text_encoder", "text_encoder_unimodal", "vision_projection"),
}
