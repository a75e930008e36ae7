"""The task manifest and processor folder: what the runtime must know whatever the target."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from configs.errors import InputError
from configs.layout import Layout, Location
from configs.schema import TASK_COMPONENTS, PipelineConfig
from export.checkpoint import CheckpointFiles
from pipeline.atomic import artifact_lock, publish, staging, write_atomically
from pipeline.build import files_match
from pipeline.console import messages
from pipeline.manifest import (
    Checkpoint,
    ComponentManifest,
    StaticShapes,
    TaskManifest,
    file_record,
    from_json,
    key_of,
    manifest_text,
    read_manifest,
)
from pipeline.sources import source_digest

if TYPE_CHECKING:
    from export.processor import Processor
    from export.settings import ModelSettings

_STEM = "task"
_FOLDER = "processor"


@dataclass(frozen=True)
class TaskItem:
    """A task manifest to write."""

    layout: Layout
    key: str
    #: whether the existing one can stay
    reusable: bool


def plan_task(
    pipeline: PipelineConfig,
    files: CheckpointFiles,
    layout: Layout,
    versions: dict[str, str],
    *,
    force: bool,
) -> TaskItem:
    """Finds out whether the task manifest and processor files can stay."""
    config = pipeline.tasks[files.task]
    key = key_of(
        {
            "pipeline": pipeline.name,
            "domain": pipeline.domain,
            "task": files.task,
            "components": TASK_COMPONENTS[files.task],
            "checkpoint": asdict(files.identity),
            "config": files.config_sha256,
            "processor": files.processor_sha256,
            "question_start": config.question_start,
            "image_size": config.image_size,
            "shapes": config.shapes.model_dump(),
            "sources": source_digest("export.task_manifest"),
            "tools": {name: versions[name] for name in ("transformers", "tokenizers")},
        }
    )
    reusable = False
    if not force:
        try:
            manifest = read_manifest(TaskManifest, layout.task_manifest(files.task))
            reusable = manifest.key == key and files_match(layout.task(files.task), manifest.files)
        except InputError:
            reusable = False
    return TaskItem(layout, key, reusable)


def build_task(
    pipeline: PipelineConfig,
    item: TaskItem,
    files: CheckpointFiles,
    settings: ModelSettings,
    processor: Processor,
) -> None:
    """Writes the processor folder, then the task manifest.

    Raises:
        InputError: the checkpoint cannot serve the configured question start.
        ToolError: the disk is full or the folder cannot be written.
    """
    from export.processor import image_settings, text_settings, write_processor

    config = pipeline.tasks[files.task]
    text = text_settings(processor, settings, config)
    folder = item.layout.task(files.task)
    path = item.layout.task_manifest(files.task)
    with artifact_lock(folder, _STEM), staging(folder, _STEM) as temporary:
        written = write_processor(processor, temporary / _FOLDER)
        names = [str(file.relative_to(temporary)) for file in written]
        manifest = TaskManifest(
            path=path,
            pipeline=pipeline.name,
            task=files.task,
            checkpoint=files.identity,
            components=TASK_COMPONENTS[files.task],
            text=text,
            image=image_settings(processor),
            dimensions=settings.dimensions(),
            shapes=from_json(StaticShapes, config.shapes.model_dump()),
            files={name: file_record(temporary / name) for name in names},
            key=item.key,
            domain=pipeline.domain,
        )
        path.unlink(missing_ok=True)
        shutil.rmtree(folder / _FOLDER, ignore_errors=True)
        publish(temporary, folder, names, path)
        write_atomically(path, manifest_text(manifest))


def check_previous(files: CheckpointFiles, layout: Layout, *, force: bool) -> None:
    """Compares a hub checkpoint with the one that was exported last, and says if it moved.

    Raises:
        InputError: other weights under the same commit.
    """
    try:
        old = read_manifest(TaskManifest, layout.task_manifest(files.task)).checkpoint
    except InputError:
        return
    new = files.identity
    if new.revision is None or old.revision is None or old.source != new.source:
        return
    if old.revision != new.revision:
        messages.print(
            f"{files.task}: {new.source} moved from {old.revision[:7]} to {new.revision[:7]}"
        )
    elif old.weights_sha256 != new.weights_sha256 and not force:
        raise InputError(
            f"{new.source} at {new.revision[:7]}: not the weights that this commit had when it was "
            f"exported; delete {files.folder} and run again, or use FORCE=1 if these are right"
        )


def restamp(location: Location, identity: Checkpoint) -> None:
    """Brings a reused artifact's record of its checkpoint up to date.

    A component is rebuilt only for a change of weights that it depends on, so the digest of the
    whole checkpoint may have moved on without it.
    """
    if read_manifest(ComponentManifest, location.manifest).checkpoint == identity:
        return
    with artifact_lock(location.folder, location.stem):
        manifest = read_manifest(ComponentManifest, location.manifest)
        if manifest.checkpoint != identity:
            updated = replace(manifest, checkpoint=identity)
            write_atomically(location.manifest, manifest_text(updated))
