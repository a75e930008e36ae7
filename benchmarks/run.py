"""One benchmark: prepare, open every variant, take the samples, draw the conclusions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks import analysis
from benchmarks.acceptance import judge
from benchmarks.campaign import LEAST_SAMPLE_S, Campaign
from benchmarks.command_line import CommandLine, folder_share, photos, starts
from benchmarks.endurance import endure
from benchmarks.floor import caption_work, checkpoint_configuration
from benchmarks.machine import Machine, describe, free_memory_bytes
from benchmarks.plans import plan
from benchmarks.plot import PLOT_FILE, write_plot
from benchmarks.preparation import make_inputs, prepare
from benchmarks.progress import Progress
from benchmarks.results import (
    RESULT_FILE,
    Benchmark,
    Endurance,
    Folder,
    Start,
    TaskResult,
    VariantResult,
)
from benchmarks.runners.base import RunnerOptions
from benchmarks.runners.limits import VIT_BASE_ROWS
from benchmarks.samples import SampleStore
from benchmarks.schedule import (
    BATCH_16,
    GREEDY,
    LIMITS,
    NEW_TOKENS,
    PAST_TO,
    PROMPT_TOKENS,
    Workload,
)
from benchmarks.summaries import summarise
from benchmarks.worker_process import Worker, WorkerError
from configs.layout import Layout
from configs.schema import PipelineConfig, Task
from pipeline.atomic import write_atomically
from pipeline.build import as_json, tool_versions
from pipeline.manifest import key_of
from pipeline.sources import source_digest
from runtime.files.manifests import TaskManifest, component_manifests, read_task_manifest

_TOOLS = ("torch", "transformers", "onnxruntime", "openvino", "numpy")
#: Modes whose process start and folder throughput are measured.
_COMMAND_LINE_MODES = ("fast", "int8")
#: Loading a variant may take this much memory on a full-size model.
_SPARE_BYTES = 3 << 30


@dataclass(frozen=True)
class BenchOptions:
    """What the user asked for."""

    config: Path
    tasks: tuple[Task, ...]
    variants: tuple[str, ...]
    rounds: int | None
    quick: bool
    threads: int
    fresh: bool
    command_line: bool
    #: folder of the results
    out: Path
    #: images in a row, or None
    endurance: int | None = None


def run_benchmark(pipeline: PipelineConfig, options: BenchOptions) -> Benchmark:
    """Measures every task and writes benchmark.json and benchmark.svg.

    Raises:
        InputError: a checkpoint is missing.
        ToolError: the export failed.
    """
    layout = Layout(pipeline)
    machine = describe()
    tasks: dict[str, TaskResult] = {}
    missing = {
        task: prepare(options.config, pipeline, task, options.variants).missing
        for task in options.tasks
    }
    for task in options.tasks:
        tasks[task] = _task(pipeline, options, task, missing[task], machine)
    result = Benchmark(
        pipeline=pipeline.name,
        machine=machine,
        tools=tool_versions(*_TOOLS),
        threads=options.threads,
        new_tokens=NEW_TOKENS,
        prompt_tokens=PROMPT_TOKENS,
        quick=options.quick,
        artifacts=_artifacts(layout, options.tasks),
        tasks=tasks,
    )
    write_atomically(options.out / RESULT_FILE, as_json(result))
    write_plot(result, options.out / PLOT_FILE)
    return result


def _artifacts(layout: Layout, tasks: tuple[Task, ...]) -> dict[str, str]:
    return {
        f"{task}/{item.target}/{item.precision}/{item.component}": item.key
        for task in tasks
        for item in component_manifests(layout.task(task))
        if item.target in ("onnx", "openvino")
    }


def _task(
    pipeline: PipelineConfig,
    options: BenchOptions,
    task: Task,
    missing: dict[str, str],
    machine: Machine,
) -> TaskResult:
    layout = Layout(pipeline)
    work = layout.work / "benchmark"
    work.mkdir(parents=True, exist_ok=True)
    inputs = work / f"inputs-{task}.npz"
    make_inputs(pipeline, task, inputs)
    manifest = read_task_manifest(layout.task_manifest(task))
    variants = tuple(name for name in options.variants if name not in missing)
    blocks = plan(
        task,
        variants,
        rounds=options.rounds,
        quick=options.quick,
        long_fits=manifest.text.maximum_positions > PAST_TO + 1,
    )
    key = key_of(
        {
            "artifacts": _artifacts(layout, (task,)),
            "blocks": repr(blocks),
            "threads": options.threads,
            "machine": machine.model_dump(mode="json"),
            "tools": tool_versions(*_TOOLS),
            "sources": source_digest("benchmarks.campaign", "benchmarks.worker"),
        }
    )
    store = SampleStore(work / f"samples-{task}-{key[:16]}.jsonl")
    for old in work.glob(f"samples-{task}-*.jsonl"):
        if options.fresh or old != store.path:
            old.unlink()
    campaign = Campaign(store)
    campaign.failures.update(missing)
    facts: dict[str, dict[str, object]] = {}
    found_starts: dict[str, Start] = {}
    found_folders: dict[str, Folder] = {}
    settings = pipeline.tasks[task]
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(f"bench {task}", sum(b.budget_s for b in blocks)))
        campaign.report = progress.report
        workers: dict[str, Worker] = {}
        for name in (*variants, LIMITS):
            progress.report(f"loading {name}", progress.total_s)
            if free_memory_bytes() < _SPARE_BYTES:
                campaign.failures[name] = "not enough free memory beside the other variants"
                continue
            run_options = RunnerOptions(
                variant=name,
                task=task,
                threads=options.threads,
                artifacts=layout.root,
                checkpoint=settings.checkpoint,
                revision=settings.revision,
                inputs=inputs,
                work=work,
            )
            worker = stack.enter_context(
                closing(Worker(run_options, layout.logs / f"bench-{task}-{name}.log"))
            )
            try:
                facts[name] = worker.open()
                workers[name] = worker
            except WorkerError as error:
                campaign.failures[name] = str(error)
        campaign.run(blocks, workers)
        if task == "caption" and options.command_line:
            found_starts, found_folders = _command_line(
                layout, options, task, work, workers, campaign, progress
            )
        endured = _endure(options, task, workers, campaign, progress)
    result = _conclude(pipeline, options, task, campaign, facts)
    result = result.model_copy(
        update={"starts": found_starts, "folders": found_folders, "endurance": endured}
    )
    store.path.unlink(missing_ok=True)
    if not full_size(manifest):
        return result
    return result.model_copy(update={"acceptance": judge(result)})


def full_size(manifest: TaskManifest) -> bool:
    """Whether the requirements are about this model: BLIP-base's captioner at 384 px."""
    size = manifest.dimensions
    return (manifest.task, size.layers, size.hidden_size, size.image_tokens) == (
        *("caption", 12, 768),
        VIT_BASE_ROWS,
    )


def _command_line(
    layout: Layout,
    options: BenchOptions,
    task: Task,
    work: Path,
    workers: dict[str, Worker],
    campaign: Campaign,
    progress: Progress,
) -> tuple[dict[str, Start], dict[str, Folder]]:
    modes = [
        name for name in _COMMAND_LINE_MODES if name in workers and name not in campaign.failures
    ]
    lines = [
        CommandLine(mode, layout.root / task, options.threads, work / "started" / mode)
        for mode in modes
    ]
    image = next(iter(sorted(photos(work, 1).iterdir())))
    report: Callable[[str], None] = lambda text: progress.report(text, 30.0)  # noqa: E731
    found, failures = starts(lines, image, 3 if options.quick else 7, report)
    folders: dict[str, Folder] = {}
    for line in lines:
        if line.mode in failures:
            continue
        progress.report(f"folder of images: {line.mode}", 20.0)
        worker = workers[line.mode]

        def inference(worker: Worker = worker) -> float:
            sample = worker.measure(BATCH_16, LEAST_SAMPLE_S)
            return BATCH_16.batch * 1000.0 / float(sample["total_ms"])

        try:
            count, rounds = (48, 1) if options.quick else (64, 3)
            folders[line.mode] = folder_share(line, count, work, inference, rounds)
        except WorkerError as error:
            failures[line.mode] = str(error)
    for mode, reason in failures.items():
        progress.say(f"bench: {mode}: {reason}")
    return found, folders


def _endure(
    options: BenchOptions,
    task: Task,
    workers: dict[str, Worker],
    campaign: Campaign,
    progress: Progress,
) -> dict[str, Endurance]:
    mode = "fast"
    images = options.endurance
    if images is None or task != "caption" or mode not in workers or mode in campaign.failures:
        return {}
    try:
        return {
            mode: endure(
                workers[mode],
                images,
                lambda done, left: progress.report(f"{mode}, image {done} of {images}", left),
            )
        }
    except WorkerError as error:
        progress.say(f"bench: {mode}: {error}")
        return {}


def _conclude(
    pipeline: PipelineConfig,
    options: BenchOptions,
    task: Task,
    campaign: Campaign,
    facts: dict[str, dict[str, object]],
) -> TaskResult:
    samples = analysis.Samples(campaign.samples)
    measured = [name for name in options.variants if name not in campaign.failures]
    floor: dict[str, dict[int, float]] = {}
    if task == "caption":
        settings = pipeline.tasks[task]
        work = caption_work(*checkpoint_configuration(settings.checkpoint, settings.revision))
        default = facts.get(LIMITS, {}).get("default_type")
        # Without bfloat16 in hardware the device's default is float32, and the floor is that of it.
        types = {"fast": str(default)} if default in ("f32", "bf16") else {}
        every = analysis.floors(samples, work, types)
        floor = {mode: by_turn for mode, by_turn in every.items() if mode in measured}
    return TaskResult(
        variants={
            name: _variant(samples, campaign, name, facts.get(name, {}))
            for name in options.variants
        },
        ratios=analysis.ratios(samples, measured),
        shapes=analysis.shapes(samples, measured),
        limits=analysis.limits(samples),
        floor_ms={mode: summarise(list(by_turn.values())) for mode, by_turn in floor.items()},
        floor_share=analysis.floor_shares(samples, floor),
        samples=tuple(campaign.samples),
    )


def _variant(
    samples: analysis.Samples, campaign: Campaign, name: str, facts: dict[str, object]
) -> VariantResult:
    if name in campaign.failures:
        return VariantResult(not_measured=campaign.failures[name])
    workloads = {}
    for workload in analysis.WORKLOADS.values():
        _, found = samples.home(name, workload.name)
        if found:
            workloads[workload.name] = analysis.workload_result(found, workload)
    memory = campaign.memory.get(name, {})
    size = facts.get("disk_bytes")
    return VariantResult(
        disk_bytes=size if isinstance(size, int) else None,
        resident_bytes=memory.get("resident_bytes"),
        peak_bytes=memory.get("peak_bytes"),
        first_call_s=campaign.first_call_s.get(name),
        workloads=workloads,
        tokens_equal=_equal_tokens(campaign, name),
    )


def _equal_tokens(campaign: Campaign, name: str) -> tuple[int, int] | None:
    """Rows of all compared workloads with torch's own tokens."""
    equal = compared = 0
    for workload in (GREEDY, *(w for w in analysis.WORKLOADS.values() if w != GREEDY)):
        pair = _pair(campaign, name, workload)
        equal += sum(ours == theirs for ours, theirs in pair)
        compared += len(pair)
    return (equal, compared) if compared and name != "torch_f32" else None


def _pair(campaign: Campaign, name: str, workload: Workload) -> list[tuple[list[int], list[int]]]:
    ours = campaign.tokens.get((name, workload.name), [])
    theirs = campaign.tokens.get(("torch_f32", workload.name), [])
    return list(zip(ours, theirs, strict=False))
