"""Every layer of a chip's net, from the vendor's own tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from configs.command import Selection
from configs.errors import ToolError
from configs.schema import Component
from verify.artifacts import TargetArtifacts, TaskArtifacts
from verify.inputs import Sample
from verify.tracing.checks import Layers


@dataclass(frozen=True)
class ChipLayers:
    """The layers of one net of a component."""

    net: str
    layers: Layers
    method: str


def chip_layers(
    selection: Selection,
    task: TaskArtifacts,
    artifacts: TargetArtifacts,
    component: Component,
    samples: Sequence[Sample],
) -> list[ChipLayers]:
    """Not there yet."""
    del selection, task, component, samples
    raise ToolError(f"{artifacts.name}: layers of chips cannot be looked at yet")
