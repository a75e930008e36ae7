"""What an IR build does, computed once: a dry run shows it, the key holds it, the build runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from compile.backend import Job, Plan, Source, own
from configs.layout import Location
from configs.load import shown
from configs.precisions import PRECISIONS, Precision
from configs.schema import Component, OpenVinoTarget, Task
from pipeline.net_shapes import NetShape, net_shapes

#: Rewrites of each component, in order; names of modules in compile/ir/rewrites.
_REWRITES: dict[Component, tuple[str, ...]] = {
    "text_decoder": (
        "first_logit",
        "fused_self_attention",
        "stateful_cache",
        "shared_cross_attention",
        "ready_cross_keys",
    ),
    "cross_key_values": ("ready_cross_keys",),
    "text_encoder_unimodal": ("first_row_only",),
}
#: Of a component that differs between tasks.
_OF_TASK: dict[tuple[Task, Component], tuple[str, ...]] = {
    ("itm", "text_encoder"): ("first_row_only",)
}
MERGE = "merged_cross_key_values"


#: Fewest query tokens of a decoder's net with fixed shapes (compile/ir/static.py).
LEAST_QUERY_TOKENS = 4


@dataclass(frozen=True)
class IrPlan(Plan):
    """All of one artifact."""

    #: components that it computes as well, merged into it
    included: tuple[Source, ...]
    #: names of the rewrites, in order
    rewrites: tuple[str, ...]
    #: nets with fixed shapes, an IR each; none where one IR has dynamic shapes
    shapes: tuple[NetShape, ...]

    @property
    def precision(self) -> Precision:
        """What the weights become."""
        return self.job.built_as

    @property
    def integers(self) -> bool:
        """Whether NNCF makes integers of them."""
        return PRECISIONS[self.precision].integer_weights

    @property
    def size_bytes(self) -> int:
        """Size of the exported graphs."""
        return sum(part.size_bytes for part in (self.source, *self.included))

    @property
    def includes(self) -> tuple[Component, ...]:
        """Names of the merged components."""
        return tuple(cast(Component, part.manifest.component) for part in self.included)

    @property
    def supersedes(self) -> tuple[Location, ...]:
        """What this artifact computes as well needs none of its own."""
        job = self.job
        return tuple(
            job.layout.artifact(job.task, part, job.target, job.precision) for part in self.includes
        )

    def script(self, config: Path) -> list[str]:
        """See ``Plan``; the converter is a library call, so the line builds the artifact itself."""
        onnx = " + ".join(shown(part.onnx) for part in (self.source, *self.included))
        shapes = ", ".join(shape.name for shape in self.shapes) or "dynamic"
        return [
            f"# {onnx}: weights {self.precision}, shapes {shapes}, "
            f"rewrites {', '.join(self.rewrites) or 'none'}",
            own("compile", config, *self.job.options),
        ]


def plan_ir(job: Job, source: Source, read: Callable[[Component], Source]) -> IrPlan:
    """The plan of one artifact; ``read`` gives the task's other exported components."""
    if has_static_shapes(job):
        return IrPlan(job, source, (), (), static_shapes(job, source))
    merged = includes(job.task, job.component)
    usual = _OF_TASK.get((job.task, job.component), _REWRITES.get(job.component, ()))
    rewrites = (MERGE, "ready_cross_keys") if merged else usual
    return IrPlan(job, source, tuple(map(read, merged)), rewrites, ())


def has_static_shapes(job: Job) -> bool:
    """Whether the target's IRs have the pipeline file's lengths."""
    return isinstance(job.target, OpenVinoTarget) and job.target.static_shapes


def includes(task: Task, component: Component) -> tuple[Component, ...]:
    """Components that the artifact of ``component`` computes besides it.

    A captioning decoder attends to the image alone, so its cross keys and values come out of the
    vision encoder's own model.
    """
    return ("cross_key_values",) if (task, component) == ("caption", "vision_encoder") else ()


def static_shapes(job: Job, source: Source) -> tuple[NetShape, ...]:
    """A component's nets with the length of each axis; a decoder's have room for four tokens."""
    shapes = job.layout.pipeline.tasks[job.task].shapes
    every = net_shapes(job.task, job.component, shapes, source.task.dimensions.image_tokens)
    nets = tuple(net for net in every if not net.is_variant)
    if job.component != "text_decoder":
        return nets
    return tuple(_with_room(net) for net in nets)


def _with_room(net: NetShape) -> NetShape:
    tokens = max(net.axes["text_tokens"], LEAST_QUERY_TOKENS)
    total = net.axes["past_tokens"] + tokens
    return replace(net, axes={**net.axes, "text_tokens": tokens, "total_tokens": total})
