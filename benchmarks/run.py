"""One benchmark: prepare, open every variant, take the samples, draw the conclusions."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command_line import command_line
from benchmarks.machine import describe
from benchmarks.plot import PLOT_FILE, write_plot
from benchmarks.prepare import make_inputs, prepare
from benchmarks.results import RESULT_FILE, Benchmark, TaskResult, VariantResult, WorkloadResult
from benchmarks.rounds import Measured, measure
from benchmarks.summary import Summary, ratio, summarise
from benchmarks.variants.base import (
    BATCH,
    BEAMS,
    GREEDY,
    MODES,
    NEW_TOKENS,
    VariantOptions,
    Workload,
)
from benchmarks.workers import Sample, VariantError, Worker
from configs.layout import Layout
from configs.schema import PipelineConfig, Task
from pipeline.atomic import write_atomically
from pipeline.build import as_json, tool_versions
from pipeline.console import messages
from runtime.files.manifests import component_manifests

_TOOLS = ("torch", "transformers", "onnxruntime", "openvino", "numpy")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class BenchOptions:
    """What the user asked for."""

    config: Path
    tasks: tuple[Task, ...]
    variants: tuple[str, ...]
    rounds: int
    quick: bool
    threads: int
    #: folder of the results
    out: Path


def run_benchmark(pipeline: PipelineConfig, options: BenchOptions) -> Benchmark:
    """Measures every task and writes benchmark.json and benchmark.svg.

    Raises:
        InputError: a checkpoint is missing.
        ToolError: the export or the command line failed.
    """
    layout = Layout(pipeline)
    # Equal for all; each library also gets the number through its own interface.
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(options.threads)))
    missing = {
        task: prepare(options.config, pipeline, task, options.variants) for task in options.tasks
    }
    result = Benchmark(
        pipeline=pipeline.name,
        machine=describe(),
        tools=tool_versions(*_TOOLS),
        threads=options.threads,
        new_tokens=NEW_TOKENS,
        rounds=options.rounds,
        quick=options.quick,
        artifacts={
            f"{task}/{item.target}/{item.precision}/{item.component}": item.key
            for task in options.tasks
            for item in component_manifests(layout.task(task))
            if item.target in ("onnx", "openvino")
        },
        tasks={task: _task(pipeline, options, task, missing[task]) for task in options.tasks},
    )
    write_atomically(options.out / RESULT_FILE, as_json(result))
    write_plot(result, options.out / PLOT_FILE)
    return result


def _task(
    pipeline: PipelineConfig, options: BenchOptions, task: Task, missing: dict[str, str]
) -> TaskResult:
    layout, settings = Layout(pipeline), pipeline.tasks[task]
    work = layout.work / "benchmark"
    inputs = make_inputs(layout, task)
    workloads = workloads_of(task, quick=options.quick)

    def report(text: str) -> None:
        # A line and no bar: redrawing one would disturb the samples.
        messages.print(f"bench {task}: {text}")

    failures, disk_bytes = dict(missing), {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in options.variants:
            if name in missing:
                continue
            report(f"loading {name}")
            variant = VariantOptions(
                variant=name,
                task=task,
                threads=options.threads,
                artifacts=layout.task(task),
                checkpoint=settings.checkpoint,
                revision=settings.revision,
                inputs=inputs,
                work=work,
            )
            log = layout.logs / f"bench-{task}-{name}.log"
            worker = stack.enter_context(closing(Worker(variant, log)))
            try:
                disk_bytes[name] = worker.opened()
                workers[name] = worker
            except VariantError as error:
                failures[name] = str(error)
        measured = measure(workers, workloads, options.rounds, report)
    failures |= measured.failures
    modes = [name for name in MODES if name in measured.samples] if task == "caption" else []
    return TaskResult(
        variants={
            name: VariantResult(not_measured=failures[name])
            if name in failures
            else variant_result(measured, name, workloads, disk_bytes[name])
            for name in options.variants
        },
        ratios=ratios(measured),
        command_line=command_line(
            modes,
            layout.task(task),
            work,
            threads=options.threads,
            images=32,
            rounds=max(1, options.rounds // 2),
            report=report,
        )
        if modes
        else {},
    )


def workloads_of(task: Task, *, quick: bool) -> tuple[Workload, ...]:
    """What every variant does in a round; matching has no beams."""
    if quick:
        return (GREEDY,)
    return (GREEDY, BATCH) if task == "itm" else (GREEDY, BEAMS, BATCH)


def variant_result(
    measured: Measured, name: str, workloads: Sequence[Workload], disk_bytes: int | None
) -> VariantResult:
    """Medians of one variant."""
    mine, torch = measured.samples[name], measured.samples.get("torch_f32", {})
    pairs = [
        pair
        for workload, samples in mine.items()
        if workload in torch and name != "torch_f32"
        for pair in zip(samples[-1].tokens, torch[workload][-1].tokens, strict=True)
    ]
    return VariantResult(
        disk_bytes=disk_bytes,
        peak_bytes=measured.peak_bytes[name],
        workloads={one.name: _workload(one, mine[one.name]) for one in workloads},
        tokens_equal=(sum(ours == theirs for ours, theirs in pairs), len(pairs)) if pairs else None,
    )


def _workload(workload: Workload, samples: Sequence[Sample]) -> WorkloadResult:
    totals = [sample.total_ms for sample in samples]
    steps = [sample.step_ms for sample in samples if sample.step_ms is not None]
    return WorkloadResult(
        batch=workload.batch,
        beams=workload.beams,
        total_ms=summarise(totals),
        samples_ms=tuple(round(total, 3) for total in totals),
        stages_ms={
            stage: statistics.median(sample.stages_ms[stage] for sample in samples)
            for stage in samples[0].stages_ms
        },
        step_ms=statistics.median(steps) if steps else None,
    )


def ratios(measured: Measured) -> dict[str, Summary]:
    """Speed-ups over torch in float32 and over the notebook's design, within rounds."""
    totals = {
        (name, workload): [sample.total_ms for sample in samples]
        for name, mine in measured.samples.items()
        for workload, samples in mine.items()
    }
    return {
        f"{workload}/{name}/{baseline}": ratio(totals[baseline, workload], mine)
        for (name, workload), mine in totals.items()
        for baseline in ("torch_f32", "notebook")
        if (baseline, workload) in totals and name != baseline
    }
