"""Works through the artifacts of a selection, two at a time, and reports."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from compile.backend import Backend, Job, Source, read_source
from compile.bmodel.backend import SophonBackend
from compile.bmodel.task_file import TaskFile
from compile.ir.backend import OpenVinoBackend
from configs.layout import Layout
from configs.schema import Component, OpenVinoTarget
from pipeline.build import Built, build_component, discard
from pipeline.command import Selection
from pipeline.console import Steps, messages, output, steps
from pipeline.manifest import ComponentManifest
from pipeline.tpu_tools.process import MemoryBudget, VendorTools

#: Steps that run side by side, and the memory they may take together beside this process. A
#: full-size BLIP-base build stays below 6 GB on two cores with these.
WORKERS = max(1, min(2, os.cpu_count() or 1))
BUDGET_BYTES = 5_200_000_000


def jobs(selection: Selection) -> list[Job]:
    """Artifacts to build. Targets come first: neighbours then share no intermediate to wait for."""
    layout = Layout(selection.pipeline)
    offered = backends(MemoryBudget(BUDGET_BYTES), VendorTools())
    found = []
    for target, precision in selection.targets:
        holder = offered[target.backend].holder
        static = isinstance(target, OpenVinoTarget) and target.static_shapes
        for task in selection.tasks:
            # A component that is merged into another one is built with it.
            wanted = selection.task_components(task)
            held = dict.fromkeys(c if static else holder(task, c) for c in wanted)
            found += [Job(layout, task, component, target, precision) for component in held]
    return found


def task_files(selected: Iterable[Job]) -> list[TaskFile]:
    """Combined files that the selected artifacts go into, each once."""
    named = {
        (job.task, job.target.name, job.precision): TaskFile(
            job.layout, job.task, job.chip, job.precision
        )
        for job in selected
        if job.target.backend == "sophon" and job.chip.combine_nets
    }
    return list(named.values())


def backends(budget: MemoryBudget, tools: VendorTools) -> dict[str, Backend]:
    """One object per backend name in ``configs/targets``."""
    return {"openvino": OpenVinoBackend(), "sophon": SophonBackend(budget, tools)}


def show_plan(selected: Iterable[Job]) -> None:
    """Prints every command of a build on standard output; runs nothing and writes nothing.

    Raises:
        ConfigError, InputError: a file that the user gives cannot be used.
    """
    offered = backends(MemoryBudget(BUDGET_BYTES), VendorTools())
    seen: set[str] = set()
    selected = list(selected)
    sources: list[Source | None] = []
    for job in selected:
        exported = job.layout.onnx(job.task, job.component).manifest.is_file()
        source = read_source(job.layout, job.task, job.component) if exported else None
        sources.append(source)
        offered[job.target.backend].check(job, source, keep=False)
    for job, source in zip(selected, sources, strict=True):
        output.print(f"# {job.name}", markup=False, soft_wrap=True)
        for line in offered[job.target.backend].plan(job, source):
            # A step shared by several chips runs once.
            if line not in seen:
                output.print(line, markup=False, soft_wrap=True)
            seen.add(line)
    for one in task_files(selected):
        output.print(f"# {one.name}", markup=False, soft_wrap=True)
        output.print(one.plan(), markup=False, soft_wrap=True)


@dataclass(frozen=True)
class _Prepared:
    job: Job
    source: Source
    backend: Backend
    key_inputs: dict[str, object]


def run(selected: list[Job], *, force: bool = False) -> None:
    """Builds what is out of date, and says what was done.

    Raises:
        InputError: an exported graph is missing or damaged; found before any work starts.
        ToolError, ParityError: the first failure; finished artifacts are kept.
    """
    started = time.perf_counter()
    budget = MemoryBudget(BUDGET_BYTES)
    tools = VendorTools()
    offered = backends(budget, tools)
    sources: dict[tuple[str, str], Source] = {}
    prepared = []
    for job in selected:
        pair = (job.task, job.component)
        if pair not in sources:
            sources[pair] = read_source(job.layout, job.task, job.component)
        backend = offered[job.target.backend]
        backend.check(job, sources[pair], keep=True)
        key_inputs = backend.key_inputs(job, sources[pair])
        prepared.append(_Prepared(job, sources[pair], backend, key_inputs))
    prepared = _longest_first(prepared)
    with steps("compile", len(prepared)) as progress, ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(_build, one, budget, progress, force=force) for one in prepared]
        try:
            _finish(futures)
        except BaseException:
            # The failure (or Ctrl-C) is the answer; nothing else may keep the user waiting.
            for future in futures:
                future.cancel()
            tools.stop()
            raise
    built = [future.result() for future in futures]
    for one in task_files(selected):
        if one.build(tools, force=force):
            size = one.location.file(".bmodel").stat().st_size
            messages.print(f"built {one.name}: {size / 1e6:.1f} MB")
    reused = sum(one.reused for one in built)
    seconds = time.perf_counter() - started
    messages.print(f"compile: {len(built) - reused} built, {reused} unchanged, {seconds:.1f} s")


def _longest_first(prepared: list[_Prepared]) -> list[_Prepared]:
    """Of each set the largest components first: none is left over for one core alone."""
    sets = list(dict.fromkeys((one.job.target.name, one.job.precision) for one in prepared))

    def order(one: _Prepared) -> tuple[int, int]:
        return sets.index((one.job.target.name, one.job.precision)), -one.source.size_bytes

    return sorted(prepared, key=order)


def _finish(futures: list[Future[Built]]) -> None:
    """Waits for all, or raises the first failure as soon as there is one."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        if future in done and (error := future.exception()):
            raise error


def _build(one: _Prepared, budget: MemoryBudget, progress: Steps, *, force: bool) -> Built:
    progress.start(one.job.name)

    def produce(folder: Path) -> dict[str, object]:
        with budget.hold(one.backend.memory_bytes(one.source)):
            return one.backend.build(one.job, one.source, folder)

    built = build_component(one.job.location, one.key_inputs, produce, force=force)
    for part in built.manifest.includes:
        # What this artifact computes as well needs none of its own.
        job = one.job
        component = cast(Component, part)
        discard(job.layout.artifact(job.task, component, job.target, job.precision))
    _discard_other_cores(one.job)
    progress.done(None if built.reused else _line(one.job, built.manifest))
    return built


def _discard_other_cores(job: Job) -> None:
    """Removes the same artifact for another number of cores: a set has one artifact each."""
    if job.target.backend != "sophon":
        return
    target = job.chip
    for cores in range(1, target.maximum_cores + 1):
        if cores != target.cores:
            other = target.model_copy(update={"cores": cores})
            discard(job.layout.artifact(job.task, job.component, other, job.precision))


def _line(job: Job, manifest: ComponentManifest) -> str:
    """One line for a finished artifact."""
    megabytes = sum(record.size_bytes for record in manifest.files.values()) / 1e6
    estimates = [
        f"{net.name} {net.estimate.latency_ms:g} ms" for net in manifest.nets if net.estimate
    ]
    estimate = f", estimate: {', '.join(estimates)}" if estimates else ""
    return f"built {job.name}: {megabytes:.1f} MB in {manifest.build.seconds:.1f} s{estimate}"
