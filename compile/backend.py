"""What every backend offers the pipeline, and what it is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from configs.errors import InputError
from configs.layout import Layout, Location
from configs.load import shown
from configs.schema import Component, Precision, TargetConfig, Task
from pipeline.build import files_match
from pipeline.manifest import ComponentManifest, TaskManifest, read_manifest
from pipeline.settings import artifact_settings, built_as


@dataclass(frozen=True)
class Source:
    """An exported component: the graph, its manifest and its task's."""

    location: Location
    manifest: ComponentManifest
    task: TaskManifest

    @property
    def onnx(self) -> Path:
        """The exported graph."""
        return self.location.folder / self.manifest.nets[0].file

    @property
    def size_bytes(self) -> int:
        """Size of the graph with its weights."""
        return sum(
            record.size_bytes
            for name, record in self.manifest.files.items()
            if not name.endswith(".npz")
        )

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of every file of the graph."""
        return {
            name: record.sha256
            for name, record in self.manifest.files.items()
            if not name.endswith(".npz")
        }


def read_source(layout: Layout, task: Task, component: Component) -> Source:
    """Reads an exported component and checks its files against its manifest.

    Raises:
        InputError: not exported yet, or a file is not the one that was exported.
    """
    location = layout.onnx(task, component)
    for path in (layout.task_manifest(task), location.manifest):
        if not path.is_file():
            raise InputError(f"{shown(path)}: not exported yet; run: make export")
    manifest = read_manifest(ComponentManifest, location.manifest)
    if not files_match(location.folder, manifest.files):
        names = ", ".join(manifest.files)
        raise InputError(
            f"{shown(location.folder)}: {names}: content differs from what was exported "
            "(cut short or changed); run: make export FORCE=1"
        )
    return Source(location, manifest, read_manifest(TaskManifest, layout.task_manifest(task)))


@dataclass(frozen=True)
class Job:
    """One artifact to build."""

    layout: Layout
    task: Task
    component: Component
    target: TargetConfig
    precision: Precision

    @property
    def built_as(self) -> Precision:
        """What this component becomes: as the pipeline file or the target says, else as the set."""
        return built_as(self.layout.pipeline, self.component, self.target, self.precision)

    def settings(self, image_tokens: int) -> dict[str, Any]:
        """Every configured value that decides the artifact's content."""
        names = (self.task, self.component, self.target, self.precision)
        return artifact_settings(self.layout.pipeline, *names, image_tokens)

    @property
    def location(self) -> Location:
        """Where the artifact goes."""
        return self.layout.artifact(self.task, self.component, self.target, self.precision)

    @property
    def name(self) -> str:
        """What messages call it."""
        name = f"{self.task}/{self.component} {self.target.name} {self.precision}"
        return name if self.built_as == self.precision else f"{name} (as {self.built_as})"


class Backend(Protocol):
    """Turns exported components into artifacts of one kind of target."""

    def holder(self, task: Task, component: Component) -> Component:
        """The component whose artifact computes ``component``: itself, or one it is merged into."""

    def check(self, job: Job, source: Source | None, *, keep: bool) -> None:
        """Looks at the files that a user gives for an artifact, before any work.

        ``keep`` is False in a dry run: nothing is written then.

        Raises:
            ConfigError, InputError: one cannot be used.
        """

    def key_inputs(self, job: Job, source: Source) -> dict[str, Any]:
        """Everything that decides the artifact's content. Imports nothing heavy.

        Raises:
            ToolError: a tool is missing.
        """

    def plan(self, job: Job, source: Source | None) -> list[str]:
        """Command lines that building would run, without running any."""

    def build(self, job: Job, source: Source, folder: Path) -> dict[str, Any]:
        """Writes the artifact's files into an empty folder; returns its manifest fields.

        Raises:
            ToolError: a tool failed.
            ParityError: a rewrite changed what the graph computes.
        """

    def memory_bytes(self, source: Source) -> int:
        """Peak memory of the backend's own work in this process, about."""


def manifest_fields(job: Job, source: Source) -> dict[str, Any]:
    """Manifest fields that all backends share."""
    return {
        "pipeline": job.layout.pipeline.name,
        "task": job.task,
        "component": job.component,
        "target": job.target.name,
        "precision": job.precision,
        "built_as": None if job.built_as == job.precision else job.built_as,
        "checkpoint": source.manifest.checkpoint,
    }
