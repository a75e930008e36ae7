"""Runs the plan of a BModel; chips share the steps that do not depend on them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from compile.backend import Job
from compile.bmodel.canonical import make_canonical
from compile.bmodel.info import BModelInfo, fusions, latency_estimate_ms, read_info
from compile.bmodel.plan import BModelPlan, NetPlan, Preparation
from compile.bmodel.work_counts import read_operators, read_profiles
from configs.errors import ToolError
from configs.load import shown
from configs.precisions import PRECISIONS, Precision
from pipeline.manifest import Work
from pipeline.net_shapes import largest_first
from pipeline.tpu_tools.process import MemoryBudget, VendorTools

if TYPE_CHECKING:
    from compile.bmodel.prepare import Prepared

#: Expected peak memory: a fixed part in bytes and a multiple of the weights (BLIP-base, measured).
_PREPARE_MEMORY = (0.3e9, 2.2)
_TRANSFORM_MEMORY = (0.4e9, 4.8)
_DEPLOY_MEMORY = 0.4e9


def _memory(measured: tuple[float, float], weights_bytes: int) -> int:
    return int(measured[0] + measured[1] * weights_bytes)


def _deploy_memory(precision: Precision, weights_bytes: int) -> int:
    return _memory((_DEPLOY_MEMORY, PRECISIONS[precision].deploy_memory), weights_bytes)


@dataclass(frozen=True)
class Deployed:
    """One net's own BModel."""

    net: NetPlan
    estimate_ms: float | None
    fusions: dict[str, int]
    work: Work | None


class BModelBuild:
    """Runs the steps of plans, each within its share of the memory budget."""

    def __init__(self, budget: MemoryBudget, tools: VendorTools) -> None:
        self._budget = budget
        self._tools = tools

    def prepare(self, wanted: Preparation) -> Prepared:
        """Rewritten graphs with fixed shapes, also under the name of the settled preparation."""
        # Here, not above: an unchanged run must not wait for onnx and onnxruntime to load.
        from compile.bmodel.prepare import copy_prepared, read_prepared, write_prepared

        source = wanted.source

        def make(folder: Path) -> None:
            with self._budget.hold(_memory(_PREPARE_MEMORY, source.size_bytes)):
                write_prepared(source, wanted.shapes, wanted.rewrites, folder)

        made = wanted.intermediate.made(make)
        prepared = read_prepared(made)
        settled = wanted.settled(prepared.needed)
        if settled is not wanted:
            settled.intermediate.made(partial(copy_prepared, made))
        return prepared

    def measuring(self, weights_bytes: int) -> AbstractContextManager[None]:
        """A share of the memory budget for calibration: two copies of a net and its tensors."""
        return self._budget.hold(_deploy_memory("f32", weights_bytes))

    def transform(self, plan: BModelPlan, net: NetPlan, weights_bytes: int) -> Path:
        """Top-level MLIR of one net; made once for all chips that take this graph."""

        def make(folder: Path) -> None:
            log = plan.job.layout.logs / f"{net.top.name}.log"
            with self._budget.hold(_memory(_TRANSFORM_MEMORY, weights_bytes)):
                self._tools.run(net.transform, folder, log, leaves=net.mlir)
            for path in folder.iterdir():
                if path.name not in net.mlir:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

        return net.top.made(make)

    def deploy(
        self,
        plan: BModelPlan,
        net: NetPlan,
        top: Path,
        weights_bytes: int,
        attentions: int,
        quantized: Mapping[str, str] | None = None,
    ) -> Deployed:
        """One net's BModel for one chip; ``quantized`` holds the texts of thresholds and table.

        Raises:
            ToolError: the compiler failed, or did not fuse all of the graph's ``attentions`` where
                the target requires it.
        """
        job, folder = plan.job, net.folder
        folder.mkdir(parents=True)
        for file in net.mlir:
            (folder / file).symlink_to(top / file)
        for file, text in (quantized or {}).items():
            (folder / file).write_text(text)
        with self._budget.hold(_deploy_memory(job.built_as, weights_bytes)):
            log = _log(job, net.name)
            leaves, work = [net.bmodel.name], job.layout.work
            printed = self._tools.run(net.deploy, folder, log, leaves=leaves, work=work)
        made = fusions(printed)
        check_fusions(job, net.name, attentions, made)
        profile = job.chip.estimate_file
        return Deployed(
            net=net,
            estimate_ms=latency_estimate_ms(folder / profile) if profile else None,
            fusions=made,
            work=_work(job, folder, net.artifact_net),
        )

    def assemble(self, plan: BModelPlan, folder: Path) -> dict[str, BModelInfo]:
        """Puts the nets' BModels into ``folder``, combined or not; returns what each file has."""
        job = plan.job
        if plan.combine:
            self._check_buffers(plan)
            (file,) = {net.file for net in plan.nets}
            self._tools.run(plan.combine, plan.folder, _log(job, "combine"), leaves=[file])
            shutil.move(plan.folder / file, folder / file)
        else:
            for net in plan.nets:
                shutil.move(net.bmodel, folder / net.file)
        files = sorted({net.file for net in plan.nets})
        for file in files:
            make_canonical(folder / file)
        return {file: self._info(job, folder / file) for file in files}

    def _check_buffers(self, plan: BModelPlan) -> None:
        """Whether the first stage of each net leaves room for what all others compute with."""
        found: dict[str, dict[str, int]] = {}
        by_name = {net.name: net for net in plan.nets}
        varied = {net.shape.net for net in plan.nets if net.shape.is_variant}
        for shape in largest_first(net.shape for net in plan.nets):
            net = by_name[shape.name]
            if shape.net in varied:
                stages = found.setdefault(net.artifact_net, {})
                stages[net.name] = self._info(plan.job, net.bmodel).buffer_bytes
        for stages in found.values():
            check_buffers(plan.job, stages)

    def _info(self, job: Job, bmodel: Path) -> BModelInfo:
        step = bmodel.stem.removeprefix(job.location.stem).strip("_") or "file"
        return read_info(self._tools, bmodel, _log(job, f"{step}_info"))


def check_fusions(job: Job, net: str, attentions: int, made: dict[str, int]) -> None:
    """Compares the compiler's fusions with the graph's attentions, in half precision.

    Other precisions are recorded only: their fusions depend on the chip and on what stays in float.

    Raises:
        ToolError: an attention was left in single operators, or fused though that is turned off.
    """
    wanted = {"required": attentions, "off": 0}.get(job.chip.attention_fusion)
    fused = sum(made.values())
    if not PRECISIONS[job.built_as].half or wanted in (None, fused):
        return
    raise ToolError(
        f"{job.name} ({net}): {fused} of {attentions} attentions were fused, {wanted} expected: "
        "the graph's shape around softmax, scale or mask differs from what the compiler "
        f"recognises; read {shown(_log(job, net))}, or set targets.{job.target.name}."
        "attention_fusion: recorded in the pipeline file"
    )


def check_buffers(job: Job, stages: Mapping[str, int]) -> None:
    """Compares what the stages of one net need, in bytes, with what the first one reserves.

    The driver takes the buffers of all stages from the first. Where caches of 3 to 5 rows needed
    4 KB more than one of 15, the largest stage gave wrong answers on BM1684X's simulator.

    Raises:
        ToolError: another stage needs more.
    """
    first = next(iter(stages), "")
    large = {name: size for name, size in stages.items() if size > stages[first]}
    if large:
        sizes = ", ".join(f"{name} {size}" for name, size in large.items())
        raise ToolError(
            f"{job.name}: the compiler's buffers of {sizes} bytes exceed those of {first}, "
            f"{stages[first]}, which the driver reserves for all stages, and answers would be "
            f"wrong; change or remove these lengths in tasks.{job.task}.shapes.variants"
        )


def _work(job: Job, folder: Path, name: str) -> Work | None:
    """What the compiler left about a net's work: its profiles, else its list of operators."""
    profile = job.chip.estimate_file
    if profile:
        # One file per core; the target's file names the first one's.
        files = [profile.replace("0", str(core)) for core in range(job.chip.cores)]
        if found := read_profiles([folder / file for file in files]):
            return found
    return read_operators(folder / f"{name}.bmodel.json")


def _log(job: Job, step: str) -> Path:
    return job.layout.logs / f"{job.location.stem}_{step}.log"
