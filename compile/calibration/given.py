"""What users give for integers, looked at before any work: calibration data, quantize tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compile.backend import Job
from compile.bmodel.integers.table_folder import check_tables
from compile.calibration.examples import (
    SCENES,
    Example,
    check_examples,
    example_count,
    examples_digest,
)
from configs.errors import ConfigError, InputError
from configs.layout import REPOSITORY_ROOT, TABLES_FOLDER, checkpoint_folder, is_shipped
from configs.schema import TASK_COMPONENTS, Component, Task
from pipeline.console import messages
from pipeline.manifest import file_sha256
from pipeline.sources import source_digest
from pipeline.work_cache import cached, cached_path


class GivenFiles:
    """Looks at each file once in a run, and at pictures once until they change."""

    def __init__(self) -> None:
        self._done: set[object] = set()

    def check_tables(self, job: Job, integer: str) -> None:
        """Looks at the folder of quantize tables that the pipeline file names for a job's chip.

        ``integer`` is the precision whose nets are calibrated. Tables without a use are announced.

        Raises:
            ConfigError: as :func:`compile.bmodel.integers.table_folder.check_tables`.
        """
        key = ("tables", job.target.name)
        if key in self._done:
            return
        self._done.add(key)
        idle = check_tables(job.layout.pipeline, job.target, _integers(job, integer))
        folder = job.layout.pipeline.targets.get(job.target.name)
        named = folder.quantize_tables if folder else None
        if named and (REPOSITORY_ROOT / named).resolve() == TABLES_FOLDER and _foreign(job):
            _warn(
                f"targets.{job.target.name}.quantize_tables: {named} was found on the shipped "
                f"checkpoints, not on {', '.join(_foreign(job))}; remove it to search for tables"
            )
        if idle:
            _warn(
                f"targets.{job.target.name}.quantize_tables: {', '.join(idle)}: not used, no set "
                f"of {job.layout.pipeline.name} makes integers of that component"
            )

    def check_data(self, job: Job, task: Task | None, *, keep: bool) -> None:
        """Reads every picture and text that a job is calibrated with.

        Args:
            job: an artifact of integers.
            task: the job's, or None where pictures alone are looked at.
            keep: whether to note in the work folder that these files were good.

        Raises:
            ConfigError: a checkpoint of the hub would be calibrated on drawn scenes unasked.
            InputError: a file or line that cannot be used, or a text that is too long.
        """
        calibration = job.layout.pipeline.calibration
        if ("data", task) in self._done:
            return
        self._done.add(("data", task))
        if calibration.source == SCENES:
            _check_scenes(job)
            return
        found = example_count(calibration, task)
        if found < calibration.samples:
            _warn(
                f"calibration.samples: {calibration.samples} given, {calibration.source} has "
                f"{found}{f' for {task}' if task else ''}: all are used; add some or lower it"
            )
        tokenizer = job.layout.task(job.task) / "processor" / "tokenizer.json"
        exported = tokenizer.is_file() and job.layout.task_manifest(job.task).is_file()
        key = {
            "examples": examples_digest(calibration, task),
            "text_tokens": job.layout.pipeline.tasks[job.task].shapes.text_tokens,
            "tokenizer": file_sha256(tokenizer) if exported else None,
            "source": source_digest("compile.calibration.given"),
        }
        name = f"calibration_{task or 'pictures'}_read"

        def read(folder: Path | None) -> None:
            check = _text_check(job) if task in ("vqa", "itm") and exported else None
            check_examples(calibration, task, check)
            if folder is not None:
                (folder / "source.txt").write_text(f"{calibration.source}\n", encoding="utf-8")

        if keep:
            cached(job.layout.work, name, key, read)
        elif not cached_path(job.layout.work, name, key).is_dir():
            read(None)


def _foreign(job: Job) -> list[str]:
    """Checkpoints of a pipeline that never saw drawn scenes."""
    tasks = job.layout.pipeline.tasks.values()
    return sorted({task.checkpoint for task in tasks if not is_shipped(task.checkpoint)})


def _check_scenes(job: Job) -> None:
    """Drawn scenes are what the shipped checkpoints see; others get ranges of other pictures."""
    checkpoint = job.layout.pipeline.tasks[job.task].checkpoint
    if is_shipped(checkpoint):
        return
    reason = (
        f"calibration.source: {job.name} is calibrated on drawn scenes, which {checkpoint} was not "
        "trained on; name a folder of pictures like those it will see"
    )
    asked = "source" in job.layout.pipeline.calibration.model_fields_set
    if checkpoint_folder(checkpoint) is None and not asked:
        raise ConfigError(f"{reason}, or write scenes to have it so")
    _warn(reason)


def _integers(job: Job, integer: str) -> set[tuple[Task, Component]]:
    """Components of which the pipeline file, or what was asked for, makes integers on the chip."""
    pipeline = job.layout.pipeline
    selection = pipeline.targets.get(job.target.name)
    precisions = {job.precision, *(selection.precisions if selection else ())}
    every = (
        Job(job.layout, task, component, job.target, precision)
        for task in pipeline.tasks
        for component in TASK_COMPONENTS[task]
        for precision in precisions
    )
    return {(one.task, one.component) for one in every if one.built_as == integer}


def _text_check(job: Job) -> Callable[[Example], None]:
    # Here, not above: files that were read before must not wait for onnxruntime to load.
    from compile.calibration.inputs import TaskGraphs, padded
    from runtime.errors import BlipEdgeError

    graphs = TaskGraphs(job.layout, job.task)
    shapes = job.layout.pipeline.tasks[job.task].shapes

    def check(example: Example) -> None:
        try:
            padded(graphs, shapes, graphs.tokenizer.question(example.text))
        except BlipEdgeError as error:
            # The runtime's errors are not the pipeline's; the text is the same.
            raise InputError(str(error)) from None

    return check


def _warn(text: str) -> None:
    messages.print(f"warning: {text}", markup=False)
