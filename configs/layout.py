"""Where everything lies: one place that knows the artifact tree (docs/manifest.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from configs.schema import (
    Component,
    OpenVinoTarget,
    PipelineConfig,
    Precision,
    TargetConfig,
    Task,
)

#: Top of the checkout: configs/ lies directly below it.
REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
CONFIGS_FOLDER = REPOSITORY_ROOT / "configs"
TARGETS_FOLDER = CONFIGS_FOLDER / "targets"
#: Quantize tables that were found on the shipped checkpoints.
TABLES_FOLDER = CONFIGS_FOLDER / "quantize-tables"
#: The shipped checkpoints, which are trained on drawn scenes.
CHECKPOINTS_FOLDER = REPOSITORY_ROOT / "models" / "checkpoints"
TPU_ENVIRONMENT = REPOSITORY_ROOT / ".venv-tpu"

TASK_MANIFEST = "manifest.json"
MANIFEST_SUFFIX = ".manifest.json"


@dataclass(frozen=True)
class Location:
    """A component artifact's folder and file stem."""

    folder: Path
    stem: str

    @property
    def manifest(self) -> Path:
        """Path of the component manifest, written last."""
        return self.folder / f"{self.stem}{MANIFEST_SUFFIX}"

    def file(self, suffix: str) -> Path:
        """Path of one of the artifact's files, e.g. ``.onnx``."""
        return self.folder / f"{self.stem}{suffix}"


@dataclass(frozen=True)
class Layout:
    """Paths of one pipeline's artifacts."""

    pipeline: PipelineConfig

    @property
    def root(self) -> Path:
        """``models/artifacts/<pipeline>``."""
        return REPOSITORY_ROOT / self.pipeline.artifacts / self.pipeline.name

    @property
    def verdict(self) -> Path:
        """``verify.json`` of the pipeline."""
        return self.root / "verify.json"

    @property
    def logs(self) -> Path:
        """Folder of vendor tool logs."""
        return self.root / "logs"

    @property
    def work(self) -> Path:
        """Folder of vendor tool intermediates, one per net; safe to delete."""
        return self.root / "work"

    @property
    def converted(self) -> Path:
        """Checkpoints converted from other formats, shared by pipelines; safe to delete."""
        return REPOSITORY_ROOT / self.pipeline.artifacts / ".checkpoints"

    def task(self, task: Task) -> Path:
        """Folder of one task: what the runtime loads."""
        return self.root / task

    def task_manifest(self, task: Task) -> Path:
        """Task manifest path."""
        return self.task(task) / TASK_MANIFEST

    def onnx(self, task: Task, component: Component) -> Location:
        """The exported graph, which serves every backend."""
        return Location(self.task(task) / "onnx", component)

    def artifact(
        self, task: Task, component: Component, target: TargetConfig, precision: Precision
    ) -> Location:
        """A compiled artifact; SOPHON's naming convention for its chips."""
        folder = self.task(task) / target.folder
        if isinstance(target, OpenVinoTarget):
            return Location(folder / precision, component)
        batch = self.pipeline.tasks[task].shapes.batch
        cores = f"_{target.cores}core" if target.cores > 1 else ""
        stem = f"{task}_{component}_{target.name}_{precision}_{batch}b{cores}"
        return Location(folder, stem)


def is_shipped(source: str) -> bool:
    """Whether a pipeline file's ``checkpoint`` is one of ``models/checkpoints``."""
    folder = checkpoint_folder(source)
    return folder is not None and folder.resolve().parent == CHECKPOINTS_FOLDER


def checkpoint_folder(source: str) -> Path | None:
    """The local path a checkpoint string means, or None when it can only be a model-hub id.

    A hub id has the form ``owner/name`` and names no existing path; everything else is a folder or
    a ``.pth`` file, relative to the repository root unless absolute.
    """
    path = Path(source).expanduser()
    candidate = path if path.is_absolute() else REPOSITORY_ROOT / path
    is_path = source.startswith((".", "/", "~")) or source.endswith(".pth")
    looks_like_hub_id = source.count("/") == 1 and not is_path
    if looks_like_hub_id and not candidate.exists():
        return None
    return candidate
