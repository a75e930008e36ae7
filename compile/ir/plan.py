"""Which components share an OpenVINO IR, and which rewrites each one gets."""

from __future__ import annotations

from configs.schema import Component, Task

#: Rewrites of each component, in order; names of modules in compile/ir_rewrites.
_REWRITES: dict[Component, tuple[str, ...]] = {
    "text_decoder": (
        "fused_self_attention",
        "stateful_cache",
        "shared_cross_attention",
        "ready_cross_keys",
    ),
    "cross_key_values": ("ready_cross_keys",),
}
MERGE = "merged_cross_key_values"


def holder(task: Task, component: Component) -> Component:
    """The component whose artifact computes ``component``.

    A captioning decoder attends to the image alone, so its cross keys and values come out of the
    vision encoder's own model.
    """
    merged = task == "caption" and component == "cross_key_values"
    return "vision_encoder" if merged else component


def includes(task: Task, component: Component) -> tuple[Component, ...]:
    """Components that the artifact of ``component`` computes besides it."""
    return ("cross_key_values",) if (task, component) == ("caption", "vision_encoder") else ()


def rewrite_names(task: Task, component: Component) -> tuple[str, ...]:
    """Names of the rewrites that a component gets, in order."""
    if includes(task, component):
        return (MERGE, "ready_cross_keys")
    return _REWRITES.get(component, ())
