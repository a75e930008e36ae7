"""What a BModel build does, computed once: a dry run shows it, the key holds it, the build runs it.

Only which rewrites find nothing to change shows later: ``settled`` gives the plan without them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from compile.backend import Job, Plan, Source, own, shell
from compile.bmodel.task_file import TaskFile
from configs.layout import Layout, Location
from configs.precisions import PRECISIONS
from configs.schema import Component, Task
from configs.tolerances import load_tolerances
from pipeline.build import tool_versions
from pipeline.manifest import key_of
from pipeline.net_shapes import NetShape, largest_first, net_in_file, net_shapes
from pipeline.sources import source_digest
from pipeline.tpu_tools import command_lines
from pipeline.tpu_tools.process import shell_line
from pipeline.work_cache import Intermediate

#: The precision that is calibrated, and its files in a net's folder.
INTEGER = "int8"
THRESHOLDS = "thresholds.txt"
TABLE = "quantize_table.txt"


@dataclass(frozen=True)
class Preparation:
    """Graphs with fixed shapes, one per net; all chips with the same rewrites share them."""

    layout: Layout
    source: Source
    rewrites: tuple[str, ...]
    shapes: tuple[NetShape, ...]
    intermediate: Intermediate

    @classmethod
    def of(cls, layout: Layout, source: Source, rewrites: tuple[str, ...]) -> Preparation:
        """What the rewrites make of an exported graph."""
        task = cast(Task, source.manifest.task)
        component = cast(Component, source.manifest.component)
        lengths = layout.pipeline.tasks[task].shapes
        shapes = net_shapes(task, component, lengths, source.task.dimensions.image_tokens)
        # Named after what was done, not for whom: chips with equal rewrites share the work.
        variant = f"_rewritten_{key_of({'rewrites': rewrites})[:6]}" if rewrites else ""
        key_inputs = {
            "prepared_by": source_digest(
                "compile.bmodel.prepare",
                without=("configs.tolerances",),
                by_name=[f"compile.bmodel.rewrites.{name}" for name in rewrites],
            ),
            "tolerance": load_tolerances().limit("rewritten_graph"),
            "onnx": source.digests,
            "nets": {shape.name: dict(shape.axes) for shape in shapes},
            "rewrites": list(rewrites),
            "tools": tool_versions("onnx", "onnxruntime"),
        }
        made = Intermediate(layout.work, f"{task}_{component}{variant}", key_inputs)
        return cls(layout, source, rewrites, shapes, made)

    def settled(self, needed: tuple[str, ...]) -> Preparation:
        """The same graphs under the name that chips without the idle rewrites know them by."""
        return self if needed == self.rewrites else self.of(self.layout, self.source, needed)


@dataclass(frozen=True)
class NetPlan:
    """One net in one shape."""

    shape: NetShape
    #: what the net is called inside the BModel; its variants are stages of that net
    artifact_net: str
    #: its top-level MLIR, which all chips and precisions of that graph share
    top: Intermediate
    #: makes the MLIR, in the intermediate's folder
    transform: command_lines.Argv
    #: where the vendor's compiler works
    folder: Path
    #: compiles it, in ``folder``
    deploy: command_lines.Argv
    #: the artifact's file that holds it
    file: str

    @property
    def name(self) -> str:
        """Unique within the component."""
        return self.shape.name

    @property
    def mlir(self) -> tuple[str, ...]:
        """Files that ``transform`` leaves for ``deploy``."""
        return command_lines.transformed(self.artifact_net)

    @property
    def bmodel(self) -> Path:
        """What ``deploy`` leaves."""
        return self.folder / f"{self.artifact_net}.bmodel"


@dataclass(frozen=True)
class BModelPlan(Plan):
    """All of one artifact."""

    preparation: Preparation
    nets: tuple[NetPlan, ...]
    #: where the vendor's tools work; each net has a folder in it
    folder: Path
    #: puts all nets into one file with shared weights, in ``folder``; None where each has its own
    combine: command_lines.Argv | None

    @property
    def commands(self) -> tuple[command_lines.Argv, ...]:
        """The vendor's commands."""
        each = (argv for net in self.nets for argv in (net.transform, net.deploy))
        return (*each, *((self.combine,) if self.combine else ()))

    @property
    def calibrated(self) -> bool:
        """Whether thresholds and quantize tables are made for the nets."""
        return PRECISIONS[self.job.built_as].calibrated

    @property
    def supersedes(self) -> tuple[Location, ...]:
        """The same artifact for other numbers of cores: a set has one artifact each."""
        job, target = self.job, self.job.chip
        others = (n for n in range(1, target.maximum_cores + 1) if n != target.cores)
        targets = (target.model_copy(update={"cores": cores}) for cores in others)
        return tuple(
            job.layout.artifact(job.task, job.component, t, job.precision) for t in targets
        )

    @property
    def follow_up(self) -> TaskFile | None:
        """The task's components in one file."""
        job = self.job
        if not job.chip.combine_nets:
            return None
        return TaskFile(job.layout, job.task, job.chip, job.precision)

    @property
    def results(self) -> Mapping[str, Path]:
        """See ``Plan``."""
        return {net.file: self.folder / net.file for net in self.nets}

    def settled(self, needed: tuple[str, ...]) -> BModelPlan:
        """The plan without rewrites that find nothing, known once the graphs were prepared.

        Chips whose graphs come out the same then share the MLIR, too.
        """
        settled = self.preparation.settled(needed)
        return self if settled is self.preparation else _planned(self.job, settled)

    @property
    def known(self) -> BModelPlan:
        """The settled plan where the graphs were prepared before, else this one."""
        from compile.bmodel.prepare import read_prepared

        try:
            return self.settled(read_prepared(self.preparation.intermediate.folder).needed)
        except (OSError, ValueError):
            return self

    def script(self, config: Path) -> list[str]:
        """See ``Plan``. The BModels are left in the work folder, without a manifest."""
        plan, job = self.known, self.job
        rewrites = ",".join(plan.preparation.rewrites)
        options = ("--task", job.task, "--component", job.component)
        lines = [own("compile prepare", config, *options, "--rewrites", rewrites)]
        for net in plan.nets:
            lines.append(shell("mkdir", "-p", net.top.folder))
            lines.append(shell_line(net.transform, net.top.folder))
        lines.append(shell("rm", "-rf", plan.folder))
        for net in plan.nets:
            links = [os.path.relpath(net.top.folder / file, net.folder) for file in net.mlir]
            lines.append(shell("mkdir", "-p", net.folder))
            lines.append(shell("ln", "-s", "-t", net.folder, *links))
        if plan.calibrated:
            lines.append(own("compile calibrate", config, *job.options))
        lines += [shell_line(net.deploy, net.folder, job.layout.work) for net in plan.nets]
        if plan.combine:
            return [*lines, shell_line(plan.combine, plan.folder)]
        return [*lines, *(shell("mv", net.bmodel, plan.folder / net.file) for net in plan.nets)]


def plan_bmodel(job: Job, source: Source) -> BModelPlan:
    """The plan before it is known which rewrites find something to change."""
    return _planned(job, Preparation.of(job.layout, source, rewrites_of(job)))


def rewrites_of(job: Job) -> tuple[str, ...]:
    """Names of the rewrites that an artifact's graphs get, in order."""
    target = job.chip
    opted_out = ("separate_attention",) if target.attention_fusion == "off" else ()
    shapes = job.layout.pipeline.tasks[job.task].shapes
    decodes = job.component == "text_decoder"
    drafts = ("every_logit",) if decodes and shapes.draft_tokens else ()
    chooses = target.decoder_head == "argmax" and decodes
    head = ("argmax_head",) if chooses else ()
    integers = target.integer_rewrites if PRECISIONS[job.built_as].calibrated else ()
    return tuple(dict.fromkeys((*target.rewrites, *opted_out, *drafts, *head, *integers)))


def _planned(job: Job, preparation: Preparation) -> BModelPlan:
    folder = job.layout.work / f"{job.location.stem}_deploy"
    shapes = preparation.shapes
    combined = job.chip.combine_nets and len(shapes) > 1
    whole = job.location.file(".bmodel").name
    nets = {}
    for shape in shapes:
        own_file = job.location.file(f"_{shape.name}.bmodel").name
        file = whole if combined or len(shapes) == 1 else own_file
        nets[shape.name] = _net(job, preparation, shape, folder / shape.name, file)
    combine = None
    if combined:
        parts = [nets[shape.name].bmodel.relative_to(folder) for shape in largest_first(shapes)]
        combine = command_lines.combine([str(part) for part in parts], whole)
    return BModelPlan(job, preparation.source, preparation, tuple(nets.values()), folder, combine)


def _net(job: Job, preparation: Preparation, shape: NetShape, folder: Path, file: str) -> NetPlan:
    target, prepared = job.chip, preparation.intermediate
    name = net_in_file(job.component, shape.net)
    transform = command_lines.transform(name, f"../{prepared.folder.name}/{shape.name}.onnx")
    key_inputs = {
        "prepared": prepared.key_inputs,
        "command": transform,
        "tpu_mlir": command_lines.version(),
    }
    calibrated = PRECISIONS[job.built_as].calibrated
    deploy = command_lines.deploy(
        name,
        target.name,
        job.built_as,
        target.cores,
        native_borders=target.borders == "native",
        address_mode=target.address_mode,
        layer_group_search=target.layer_group_search,
        thresholds=THRESHOLDS if calibrated else None,
        table=TABLE if calibrated else None,
        scale_per_channel=target.scale_per_channel,
    )
    top = Intermediate(prepared.work, f"{prepared.name}_{shape.name}_top", key_inputs)
    return NetPlan(shape, name, top, transform, folder, deploy, file)
