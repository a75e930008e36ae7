"""Works through the artifacts of a selection, two at a time, and reports."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from compile.backend import (
    BUDGET_BYTES,
    Backend,
    FollowUp,
    Job,
    NotExportedError,
    Plan,
    Source,
    own,
    read_source,
)
from compile.bmodel.backend import SophonBackend
from compile.ir.backend import OpenVinoBackend
from configs.layout import Layout
from pipeline.build import Built, build_component, discard
from pipeline.command import Selection
from pipeline.console import Steps, messages, output, steps
from pipeline.manifest import ComponentManifest
from pipeline.tpu_tools.process import MemoryBudget, VendorTools

#: Steps that run side by side. A full-size BLIP-base build stays below 6 GB with two.
WORKERS = max(1, min(2, os.cpu_count() or 1))


def jobs(selection: Selection) -> list[Job]:
    """Artifacts to build. Targets come first: neighbours then share no intermediate to wait for."""
    layout = Layout(selection.pipeline)
    offered = backends(MemoryBudget(BUDGET_BYTES), VendorTools())
    found: dict[str, Job] = {}
    for target, precision in selection.targets:
        for task in selection.tasks:
            for component in selection.task_components(task):
                asked = Job(layout, task, component, target, precision)
                job = offered[target.backend].holder(asked)
                found.setdefault(job.name, job)
    return list(found.values())


def backends(budget: MemoryBudget, tools: VendorTools) -> dict[str, Backend[Any]]:
    """One object per backend name in ``configs/targets``."""
    return {"openvino": OpenVinoBackend(budget), "sophon": SophonBackend(budget, tools)}


def show_plan(selected: Iterable[Job], config: Path) -> None:
    """Prints a build as a shell script on standard output; runs nothing and writes nothing.

    Raises:
        ConfigError, InputError: a file that the user gives cannot be used.
    """
    offered = backends(MemoryBudget(BUDGET_BYTES), VendorTools())
    selected = list(selected)
    for job in selected:
        offered[job.target.backend].check(job, keep=False)
    lines: list[str] = []
    plans: list[Plan] = []
    for job in selected:
        lines.append(f"# {job.name}")
        try:
            source = read_source(job.layout, job.task, job.component)
            plan = offered[job.target.backend].plan(job, source)
        except NotExportedError as missing:
            place = ("--task", job.task, "--component", missing.component)
            lines.append(own("export", config, *place))
            lines.append("# not exported yet: what follows is shown once it is")
            continue
        plans.append(plan)
        lines += plan.script(config)
    results = {name: path for plan in plans for name, path in plan.results.items()}
    for one in _follow_ups(plans):
        lines += [f"# {one.name}", *one.script(results)]
    # A step that several artifacts share runs once.
    for line in dict.fromkeys(lines):
        output.print(line, markup=False, emoji=False, soft_wrap=True)


def _follow_ups(plans: Iterable[Plan]) -> list[FollowUp]:
    """What is made from several artifacts, each once."""
    found = (plan.follow_up for plan in plans)
    return list({one.name: one for one in found if one is not None}.values())


@dataclass(frozen=True)
class _Planned:
    plan: Plan
    backend: Backend[Any]
    key_inputs: dict[str, object]


def run(selected: list[Job], *, force: bool = False) -> None:
    """Builds what is out of date, and says what was done.

    Raises:
        InputError: an exported graph is missing or damaged; found before any work starts.
        ToolError, ParityError: the first failure; finished artifacts are kept.
    """
    started = time.perf_counter()
    tools = VendorTools()
    offered = backends(MemoryBudget(BUDGET_BYTES), tools)
    sources: dict[tuple[str, str], Source] = {}
    planned = []
    for job in selected:
        pair = (job.task, job.component)
        if pair not in sources:
            sources[pair] = read_source(job.layout, job.task, job.component)
        backend = offered[job.target.backend]
        backend.check(job, keep=True)
        plan = backend.plan(job, sources[pair])
        planned.append(_Planned(plan, backend, backend.key_inputs(plan)))
    planned = _longest_first(planned)
    with steps("compile", len(planned)) as progress, ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(_build, one, progress, force=force) for one in planned]
        try:
            _finish(futures)
        except BaseException:
            # The failure (or Ctrl-C) is the answer; nothing else may keep the user waiting.
            for future in futures:
                future.cancel()
            tools.stop()
            raise
    built = [future.result() for future in futures]
    for one in _follow_ups(one.plan for one in planned):
        if size := one.build(tools, force=force):
            messages.print(f"built {one.name}: {size / 1e6:.1f} MB")
    reused = sum(one.reused for one in built)
    seconds = time.perf_counter() - started
    messages.print(f"compile: {len(built) - reused} built, {reused} unchanged, {seconds:.1f} s")


def _longest_first(planned: list[_Planned]) -> list[_Planned]:
    """Of each set the largest components first: none is left over for one core alone."""

    def of(one: _Planned) -> tuple[str, str]:
        return one.plan.job.target.name, one.plan.job.precision

    sets = list(dict.fromkeys(map(of, planned)))
    return sorted(planned, key=lambda one: (sets.index(of(one)), -one.plan.source.size_bytes))


def _finish(futures: list[Future[Built]]) -> None:
    """Waits for all, or raises the first failure as soon as there is one."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        if future in done and (error := future.exception()):
            raise error


def _build(one: _Planned, progress: Steps, *, force: bool) -> Built:
    job = one.plan.job
    progress.start(job.name)
    produce = partial(one.backend.build, one.plan)
    built = build_component(job.location, one.key_inputs, produce, force=force)
    for other in one.plan.supersedes:
        discard(other)
    progress.done(None if built.reused else _line(job, built))
    if not built.reused:
        for warning in overtaken(job.name, built.manifest):
            messages.print(f"[yellow]warning[/] {escape(warning)}")
    return built


def overtaken(name: str, manifest: ComponentManifest) -> Iterator[str]:
    """Shapes that cost memory and bring no time, by the compiler's estimate."""
    for net in manifest.nets:
        for shape, faster in net.overtaken():
            yield (
                f"{name}: {shape.name} ({shape.latency_ms:g} ms) is not faster than {faster.name} "
                f"({faster.latency_ms:g} ms), which takes its calls; drop it from shapes.variants"
            )


def _line(job: Job, built: Built) -> str:
    """One line for a finished artifact."""
    manifest = built.manifest
    megabytes = sum(record.size_bytes for record in manifest.files.values()) / 1e6
    estimates = [
        f"{net.name} {net.estimate.latency_ms:g} ms" for net in manifest.nets if net.estimate
    ]
    estimate = f", estimate: {', '.join(estimates)}" if estimates else ""
    return f"built {job.name}: {megabytes:.1f} MB in {built.seconds:.1f} s{estimate}"
