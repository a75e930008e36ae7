"""Which data sets a run goes through: from the pipeline file, or from ``--dataset kind:path``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from configs.errors import ConfigError, InputError
from configs.layout import REPOSITORY_ROOT
from configs.load import shown
from configs.schema import DATA_SET_TASKS, DataSetConfig, EvaluateConfig, Task
from pipeline.command import Selection
from pipeline.manifest import file_sha256, key_of
from verify.evaluation.formats import (
    csv_tasks,
    find_csv,
    items_of,
    read_coco_captions,
    read_csv,
    read_karpathy,
    read_vqa,
)
from verify.evaluation.items import DataSet, scenes

#: Part of every identity; raise it when the files' items change meaning.
ITEMS_VERSION = 2


@dataclass(frozen=True)
class Asked:
    """A data set of one task, and how many of its items were asked for."""

    data_set: DataSet
    items: int


def parse_data_set(
    text: str, *, questions: str | None, images: str | None, split: str | None
) -> DataSetConfig:
    """What ``--dataset kind:path`` and its companions mean; paths are relative to where one is.

    Raises:
        ConfigError: an unknown kind, or options that do not fit it.
    """
    kind, _, path = text.partition(":")
    if kind not in DATA_SET_TASKS:
        raise ConfigError(
            f"--dataset {text}: unknown kind {kind!r}; choose from: {', '.join(DATA_SET_TASKS)}"
        )
    given = {
        "path": str(Path(path).absolute()) if path else None,
        "questions": str(Path(questions).absolute()) if questions else None,
        "images": str(Path(images).absolute()) if images else None,
        "split": split,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    try:
        return DataSetConfig.model_validate({"kind": kind, **fields})
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--dataset {text}: {reason}") from None


def open_data_sets(
    selection: Selection, config: EvaluateConfig, *, tasks_named: bool
) -> list[Asked]:
    """Opens every data set for every selected task that it has something for.

    Args:
        selection: tasks and pipeline.
        config: which data sets.
        tasks_named: the user named the tasks, so each of them must be served.

    Raises:
        InputError: a file is missing or cannot be used.
        ConfigError: no data set for a task, or two of one name.
    """
    found: list[Asked] = []
    for number, wanted in enumerate(config.data_sets):
        where = f"evaluate.data_sets[{number}]"
        for task in _tasks(wanted, selection):
            data_set = _open(wanted, task, config)
            taken = {(asked.data_set.task, asked.data_set.name) for asked in found}
            if (task, data_set.name) in taken:
                raise ConfigError(f"{where}.name: {data_set.name} is taken; give another name")
            found.append(Asked(data_set, min(data_set.available, wanted.items or config.items)))
    served = {asked.data_set.task for asked in found}
    missing = [task for task in selection.tasks if task not in served]
    if not found or (tasks_named and missing):
        kinds = ", ".join(data_set.kind for data_set in config.data_sets)
        raise ConfigError(
            f"evaluate.data_sets: nothing for {', '.join(missing)} in {kinds}; "
            "name another data set or task"
        )
    return found


def _tasks(wanted: DataSetConfig, selection: Selection) -> list[Task]:
    allowed = wanted.tasks or DATA_SET_TASKS[wanted.kind]
    if wanted.kind == "folder":
        file = find_csv(_absolute(wanted.path))
        has = csv_tasks(file)
        for task in wanted.tasks or ():
            if task not in has:
                raise InputError(f"{shown(file)}: line 1: no columns for {task}; add them")
        if not has:
            raise InputError(
                f"{shown(file)}: line 1: besides image, name caption, or question and answer, "
                "or text and match"
            )
        allowed = tuple(task for task in allowed if task in has)
    return [task for task in selection.tasks if task in allowed]


def _open(wanted: DataSetConfig, task: Task, config: EvaluateConfig) -> DataSet:
    if wanted.kind == "scenes":
        return scenes(task, config.seed, wanted.name or "scenes")
    path = _absolute(wanted.path)
    file = find_csv(path) if wanted.kind == "folder" else path
    folder = _absolute(wanted.images) if wanted.images else file.parent
    split = wanted.split if wanted.kind == "karpathy" else ""
    files = [file]
    if wanted.kind == "coco_captions":
        images = read_coco_captions(file, folder)
    elif wanted.kind == "karpathy":
        images = read_karpathy(file, folder, split)
    elif wanted.kind == "vqa_v2":
        files.append(_absolute(wanted.questions))
        images = read_vqa(file, files[1], folder)
    else:
        images = read_csv(file, folder, task)
    items = items_of(task, images, config.prompt, file)
    identity = key_of(
        {
            "version": ITEMS_VERSION,
            "kind": wanted.kind,
            "task": task,
            "files": [file_sha256(name) for name in files],
            "images": str(folder),
            "split": split,
        }
    )
    source = ", ".join(shown(name) for name in files)
    return DataSet(
        task=task,
        kind=wanted.kind,
        name=wanted.name or _name(wanted, file),
        source=f"{source}: {split}" if split else source,
        identity=identity,
        available=len(items),
        item=items.__getitem__,
    )


def _absolute(path: str | None) -> Path:
    return REPOSITORY_ROOT / Path(path or "").expanduser()


def _name(wanted: DataSetConfig, file: Path) -> str:
    stem = file.parent.name if wanted.kind == "folder" else file.stem
    plain = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_") or wanted.kind
    return f"{plain}_{wanted.split}" if wanted.kind == "karpathy" else plain


def answer_list(config: EvaluateConfig, task: Task) -> tuple[str, ...]:
    """The answers that questions are to choose from, each once; none where they are generated.

    Raises:
        InputError: the file cannot be read, or holds none.
    """
    if config.answers is None or task != "vqa":
        return ()
    try:
        lines = Path(config.answers).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--answers {config.answers}: {reason}; name a text file") from None
    answers = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not answers:
        raise InputError(f"--answers {config.answers}: is empty; write an answer per line")
    return answers
