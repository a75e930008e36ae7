"""Plans and runs an export: one ONNX per component, checked against the checkpoint's own model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.layout import Layout, Location
from configs.load import shown
from configs.schema import Component, PipelineConfig, Task
from export.checkpoint import CheckpointFiles, Source, find, inspect
from export.components import registry
from export.task_manifest import TaskItem, build_task, check_previous, plan_task, restamp
from pipeline.build import build_component, current, tool_versions
from pipeline.checkpoint.files import IMAGE_FILES, TEXT_FILES
from pipeline.command import Selection
from pipeline.console import Steps, messages, steps
from pipeline.manifest import FIRST_LOGIT, Net, key_of
from pipeline.sources import source_digest

if TYPE_CHECKING:
    from export.processor import Processor
    from export.settings import ModelSettings

TOOLS = ("torch", "transformers", "tokenizers", "onnx", "numpy", "pillow")
_FILES = {"image": IMAGE_FILES, "text": TEXT_FILES}


@dataclass(frozen=True)
class Item:
    """One component to export."""

    component: Component
    location: Location
    key_inputs: dict[str, Any]
    #: whether the existing artifact can stay
    reusable: bool


@dataclass(frozen=True)
class TaskPlan:
    """One task to export."""

    files: CheckpointFiles
    task_item: TaskItem
    items: tuple[Item, ...]

    @property
    def task(self) -> Task:
        """Task name."""
        return self.files.task

    @property
    def work(self) -> int:
        """How many artifacts have to be built."""
        return sum(not item.reusable for item in self.items) + (not self.task_item.reusable)


def find_sources(selection: Selection) -> list[Source]:
    """Finds every checkpoint, before the first one is downloaded.

    Raises:
        InputError: a checkpoint that is missing, or for another task.
    """
    return [find(task, selection.pipeline.tasks[task]) for task in selection.tasks]


def plan(
    selection: Selection, sources: list[Source] | None = None, *, force: bool = False
) -> list[TaskPlan]:
    """Checks every checkpoint and finds out what has to be built, without loading any.

    Raises:
        InputError: a checkpoint that is damaged, or another one under the same revision.
    """
    layout = Layout(selection.pipeline)
    found = []
    for source in find_sources(selection) if sources is None else sources:
        if missing := source.missing:
            size = sum(missing.values()) / 1e6
            messages.print(f"{source.task}: downloading {source.name}, {size:,.0f} MB")
        files = inspect(source, layout.converted)
        check_previous(files, layout, force=force)
        found.append((source.task, files))
    versions = tool_versions(*TOOLS)
    plans = []
    for task, files in found:
        items = []
        for component in selection.task_components(task):
            location = layout.onnx(task, component)
            pixels = selection.pipeline.tasks[task].image_size
            key_inputs = _key_inputs(component, files, pixels, versions)
            reusable = not force and current(location, key_of(key_inputs)) is not None
            items.append(Item(component, location, key_inputs, reusable))
        task_item = plan_task(selection.pipeline, files, layout, versions, force=force)
        plans.append(TaskPlan(files, task_item, tuple(items)))
    return plans


def _key_inputs(
    component: Component, files: CheckpointFiles, image_size: int | None, versions: dict[str, str]
) -> dict[str, Any]:
    """Everything that decides a component's files. Static shapes do not: its axes are dynamic."""
    weights = registry.parameters_of(component, files.task, files.parameters)
    reads = registry.REGISTRY[component].reads
    names = [name for kind in reads for name in _FILES[kind]]
    return {
        "task": files.task,
        "component": component,
        "architecture": files.identity.architecture,
        "config": files.config_sha256,
        "weights": files.digest(weights),
        "image_size": image_size if "image" in reads else None,
        # Reference inputs are real: scenes through the checkpoint's own processor.
        "processor": {n: d for n, d in files.processor_sha256.items() if n in names},
        "sources": source_digest(
            "export.pipeline",
            # Tolerances say whether an export passes.
            without=("configs.tolerances", "export.task_manifest"),
            by_name=[f"export.components.{component}"],
        ),
        "tools": versions,
    }


@dataclass
class _Loaded:
    """A task's model and samples, loaded when the first component needs them."""

    files: CheckpointFiles
    settings: ModelSettings
    processor: Processor

    @cached_property
    def samples(self) -> Any:
        from export.model import load_model
        from export.samples import Samples

        size = self.settings.image_size if self.settings.resized else None
        return Samples(load_model(self.files, size), self.processor, self.settings)


def run(selection: Selection, plans: list[TaskPlan], *, force: bool = False) -> int:
    """Builds what is not there yet; returns how many artifacts were built.

    Every task's settings are checked before the first is built.

    Raises:
        InputError, ConfigError: a checkpoint or shape that cannot be exported.
        ParityError: a wrapper that does not compute what the checkpoint computes.
        ToolError: the exporter failed or the disk is full.
    """
    from export.accounting import check_tensors
    from export.processor import load_processor, text_settings
    from export.settings import check_shapes, read_settings

    pending = [item for item in plans if item.work]
    loaded = []
    for item in pending:
        config = selection.pipeline.tasks[item.task]
        settings = read_settings(item.files, config.image_size)
        check_shapes(settings, config.shapes)
        check_tensors(item.files)
        processor = load_processor(item.files, settings)
        text_settings(processor, settings, config)
        loaded.append(_Loaded(item.files, settings, processor))
    with steps("export", sum(item.work for item in pending)) as progress:
        while pending:
            # Popped, so that one task's model is freed before the next is loaded.
            _run_task(selection.pipeline, pending.pop(0), loaded.pop(0), progress, force=force)
    return sum(item.work for item in plans)


def _run_task(
    pipeline: PipelineConfig, plan: TaskPlan, loaded: _Loaded, progress: Steps, *, force: bool
) -> None:
    for item in plan.items:
        if item.reusable:
            restamp(item.location, plan.files.identity)
            continue
        progress.start(f"{plan.task} {item.component}")
        line = _build(pipeline, item, plan.files, loaded, force=force)
        progress.done(line)
    # Last, so that a checkpoint whose weights turn out to be bad leaves nothing behind.
    if not plan.task_item.reusable:
        progress.start(f"{plan.task} processor")
        build_task(pipeline, plan.task_item, plan.files, loaded.settings, loaded.processor)
        progress.done()


def _build(
    pipeline: PipelineConfig, item: Item, files: CheckpointFiles, loaded: _Loaded, *, force: bool
) -> str:
    errors: list[float] = []

    def produce(folder: Path) -> dict[str, Any]:
        fields, error = _export(item, folder, loaded)
        errors.append(error)
        return {
            "pipeline": pipeline.name,
            "task": files.task,
            "component": item.component,
            "target": "onnx",
            "precision": "f32",
            "tools": item.key_inputs["tools"],
            "checkpoint": files.identity,
            **fields,
        }

    built = build_component(item.location, item.key_inputs, produce, force=force)
    name = f"{files.task} {item.component}"
    path = shown(item.location.file(".onnx"))
    if built.reused:
        return f"{name}: built meanwhile by another run: {path}"
    return f"{name}: {path} in {built.seconds:.1f} s, off by {errors[0]:.1e} from the model"


def _export(item: Item, folder: Path, loaded: _Loaded) -> tuple[dict[str, Any], float]:
    """Checks and writes one component; returns manifest fields and the worst relative error."""
    import torch

    from export import reference
    from export.onnx_file import write_onnx

    module = registry.load(item.component)
    stem = item.location.stem
    with torch.no_grad(), _repeatable():
        samples = loaded.samples
        wrapper = module.wrapper(samples.model, loaded.settings).eval()
        outcome = reference.check(item.component, module, wrapper, samples)
        reference.write(folder / f"{stem}.reference.npz", outcome.record)
        tensors = module.tensors(loaded.settings)
        write_onnx(wrapper, tensors, folder / f"{stem}.onnx")
    optional = {spec.name: spec.artifact_name for spec in tensors.optional}
    net = Net(
        name="main",
        file=f"{stem}.onnx",
        inputs=tensors.inputs,
        outputs=tensors.outputs,
        first_logit=optional.get(FIRST_LOGIT),
    )
    return {"nets": (net,)}, outcome.worst_relative_error


@contextmanager
def _repeatable() -> Iterator[None]:
    """The same values everywhere: torch sums in another order with another number of threads.

    Nothing in an export is random; a fixed seed makes sure that it stays so.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)
