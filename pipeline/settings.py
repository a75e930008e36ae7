"""What a pipeline file and its target say about one artifact: the part of its key that is no file.

``compile`` puts it into the key; ``verify`` works it out again and so finds an artifact that was
compiled for other settings (docs/adr/0017-exact-keys.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from configs.precisions import PRECISIONS, Precision
from configs.schema import Component, PipelineConfig, SophonTarget, TargetConfig, Task
from pipeline.net_shapes import net_shapes

#: Keys of a target's file that decide no artifact's content, and why. All others count.
_DECIDES_NOTHING = {
    "folder": "where artifacts lie",
    "precisions": "what may be asked for",
    "default_precision": "what may be asked for",
    "components": "`built_as` is what it comes to",
    "maximum_cores": "bounds `cores`",
    "float32": "how far it may be off",
}
#: And those that do only in an artifact of calibrated integers, or of a decoder.
_OF_INTEGERS = ("integer_rewrites", "integer_islands", "scale_per_channel")
_OF_DECODERS = ("decoder_head",)


def built_as(
    pipeline: PipelineConfig, component: Component, target: TargetConfig, precision: Precision
) -> Precision:
    """What a component of a set becomes: as the pipeline file or the target says, else as the set.

    ``precision`` is the set's.
    """
    selection = pipeline.targets.get(target.name)
    overrides = selection.components.get(precision, {}) if selection else {}
    defaults = target.components.get(precision, {})
    return {**defaults, **overrides}.get(component, precision)


def artifact_settings(
    pipeline: PipelineConfig,
    task: Task,
    component: Component,
    target: TargetConfig,
    precision: Precision,
    image_tokens: int,
) -> dict[str, Any]:
    """Every configured value that decides a compiled artifact's content, as JSON has it."""
    kind = built_as(pipeline, component, target, precision)
    unused = set(_DECIDES_NOTHING)
    unused |= set() if PRECISIONS[kind].calibrated else set(_OF_INTEGERS)
    unused |= set() if component == "text_decoder" else set(_OF_DECODERS)
    # IRs have dynamic shapes, or the main one of each net.
    shapes = pipeline.tasks[task].shapes
    fixed = isinstance(target, SophonTarget) or target.static_shapes
    nets = net_shapes(task, component, shapes, image_tokens) if fixed else ()
    return {
        "precision": precision,
        "built_as": kind,
        "target": target.model_dump(mode="json", exclude=unused),
        "shapes": {
            net.name: dict(net.axes)
            for net in nets
            if isinstance(target, SophonTarget) or not net.is_variant
        },
        "calibration": pipeline.calibration.model_dump(mode="json")
        if PRECISIONS[kind].calibrated
        else None,
    }


def differences(
    recorded: Mapping[str, Any], wanted: Mapping[str, Any], path: str = ""
) -> Iterator[str]:
    """Where settings differ, e.g. ``shapes.main.text_tokens: 8, now 6``."""
    for name in sorted({*recorded, *wanted}):
        old, new = recorded.get(name), wanted.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{path}{name}.")
        elif old != new:
            yield f"{path}{name}: {old}, now {new}"
