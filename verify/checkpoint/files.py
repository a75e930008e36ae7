"""Whether a checkpoint on this disk is the one that artifacts were exported from."""

from __future__ import annotations

from configs.errors import InputError
from configs.layout import Layout, checkpoint_folder
from configs.schema import Task, TaskConfig
from pipeline.checkpoint.stored import ORIGINAL, weights_sha256
from pipeline.manifest import TaskManifest, file_sha256


def check_checkpoint(layout: Layout, task: Task, manifest: TaskManifest) -> None:
    """Compares a checkpoint's weights with the task manifest.

    Raises:
        InputError: the checkpoint is missing, damaged or another one.
    """
    if weights_sha256(layout, task, manifest.checkpoint.revision) != (
        manifest.checkpoint.weights_sha256
    ):
        raise InputError(
            f"{layout.pipeline.tasks[task].checkpoint}: not the weights that {task} was exported "
            f"from; run: make export TASK={task}, then compile again"
        )


def checkpoint_files(config: TaskConfig) -> dict[str, str]:
    """Digests of a local checkpoint's settings and tokenizer; its weights are checked apart."""
    folder = checkpoint_folder(config.checkpoint)
    if folder is None:
        return {}
    if folder.suffix == ORIGINAL:
        folder = folder.parent
    names = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt"))
    return {path.name: file_sha256(path) for path in names}
