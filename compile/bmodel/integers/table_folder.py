"""The folder of quantize tables that a pipeline file names: what in it is for which net."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import get_args

from compile.backend import Job
from compile.bmodel.integers.tables import SUFFIX, modes_of, read_table, table_file
from configs.errors import ConfigError
from configs.layout import REPOSITORY_ROOT
from configs.load import load_target, shown, target_names
from configs.schema import TASK_COMPONENTS, Component, PipelineConfig, TargetConfig, Task
from pipeline.net_shapes import net_in_file, net_names

_MARK = SUFFIX.removeprefix(".")


def given_table(job: Job, artifact_net: str) -> Path | None:
    """The quantize table that the pipeline file names for a net, or None.

    Raises:
        ConfigError: the named folder does not exist.
    """
    folder = _folder(job.layout.pipeline, job.target)
    path = folder / table_file(job.task, artifact_net, job.target.name) if folder else None
    return path if path and path.is_file() else None


def check_tables(
    pipeline: PipelineConfig, target: TargetConfig, integers: set[tuple[Task, Component]]
) -> list[str]:
    """Looks at a folder of quantize tables before any work; the nets need not exist yet.

    Tables of other chips and of tasks that the pipeline lacks are passed over: a folder may serve
    several pipelines.

    Args:
        pipeline: the pipeline file.
        target: the chip.
        integers: components of which some set of the chip makes integers.

    Returns:
        File names of this chip's tables that no set of the pipeline has a use for.

    Raises:
        ConfigError: no such folder, a file that is named like a table but for no net there is, a
            table that cannot be used on the chip, or none for this chip and these tasks.
    """
    folder = _folder(pipeline, target)
    if folder is None:
        return []
    key = f"targets.{target.name}.quantize_tables"
    known = _names()
    idle, found = [], False
    for path in sorted(folder.iterdir()):
        if path.name not in known:
            _refuse_likely_table(path, known, key)
            continue
        task, component, chip = known[path.name]
        if chip != target.name or task not in pipeline.tasks:
            continue
        read_table(path, modes_of(target))
        found = True
        if (task, component) not in integers:
            idle.append(path.name)
    if not found:
        example = next(
            name
            for name, (task, _, chip) in known.items()
            if chip == target.name and task in pipeline.tasks
        )
        raise ConfigError(
            f"{key}: {shown(folder)}: has no table for {target.name}, e.g. {example}; "
            "name another folder, or remove the line to search for them"
        )
    return idle


def _folder(pipeline: PipelineConfig, target: TargetConfig) -> Path | None:
    selection = pipeline.targets.get(target.name)
    if selection is None or selection.quantize_tables is None:
        return None
    folder = REPOSITORY_ROOT / Path(selection.quantize_tables).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"targets.{target.name}.quantize_tables: {selection.quantize_tables}: no such "
            "folder; name one with quantize tables, or remove the line to search for them"
        )
    return folder


def _names() -> dict[str, tuple[Task, Component, str]]:
    """Names of all tables that could be: of every net of every task on every chip."""
    chips = [name for name in target_names() if load_target(name).backend == "sophon"]
    return {
        table_file(task, net_in_file(component, net), chip): (task, component, chip)
        for chip in chips
        for task in get_args(Task)
        for component in TASK_COMPONENTS[task]
        for net in net_names(task, component)
    }


def _refuse_likely_table(
    path: Path, known: dict[str, tuple[Task, Component, str]], key: str
) -> None:
    """A file that is meant as a table, but would never be read.

    Raises:
        ConfigError: it is one.
    """
    stems = tuple(_stem(name) for name in known)
    if path.name.startswith(".") or not (
        _MARK in path.name.lower() or path.name.lower().startswith(stems)
    ):
        return
    # The name that a build gives a table goes on after the net and the chip.
    begins = [n for n in known if path.name.lower().startswith((f"{_stem(n)}_", f"{_stem(n)}."))]
    # Or the net of a decoder was forgotten.
    part = path.name.lower().partition(".")[0].rpartition("_")[0]
    begins = begins or [name for name in known if name.startswith(f"{part}_")]
    close = difflib.get_close_matches(path.name.lower(), begins or known, n=1, cutoff=0.0)
    raise ConfigError(
        f"{key}: {shown(path)}: fits no net; name it <task>_<net>_<chip>{SUFFIX}, "
        f"e.g. {close[0]}, or remove it"
    )


def _stem(name: str) -> str:
    return name.removesuffix(SUFFIX)
