"""What every backend offers the pipeline, and what it is given."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from configs.errors import InputError
from configs.layout import Layout, Location
from configs.load import shown
from configs.precisions import Precision
from configs.schema import Component, SophonTarget, TargetConfig, Task
from pipeline.build import files_match
from pipeline.manifest import ComponentManifest, FileRecord, TaskManifest, read_manifest
from pipeline.settings import artifact_settings, built_as

if TYPE_CHECKING:
    from pipeline.tpu_tools.process import VendorTools

#: Memory that steps side by side may take together, beside this process.
BUDGET_BYTES = 5_200_000_000


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
        return sum(record.size_bytes for record in self._graph_files.values())

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of every file of the graph."""
        return {name: record.sha256 for name, record in self._graph_files.items()}

    @property
    def _graph_files(self) -> dict[str, FileRecord]:
        files = self.manifest.files.items()
        return {name: record for name, record in files if not name.endswith(".npz")}


class NotExportedError(InputError):
    """A component has no exported graph yet."""

    def __init__(self, missing: Path, component: Component) -> None:
        super().__init__(f"{shown(missing)}: not exported yet; run: make export")
        self.component = component


def read_source(layout: Layout, task: Task, component: Component) -> Source:
    """Reads an exported component and checks its files against its manifest.

    Raises:
        NotExportedError: it is not exported yet.
        InputError: a file is not the one that was exported.
    """
    location = layout.onnx(task, component)
    for path in (layout.task_manifest(task), location.manifest):
        if not path.is_file():
            raise NotExportedError(path, component)
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
    def chip(self) -> SophonTarget:
        """The target of a BModel."""
        if not isinstance(self.target, SophonTarget):
            raise TypeError(f"{self.target.name} is no SOPHON chip")
        return self.target

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
    def options(self) -> tuple[str, ...]:
        """Options of a command line that select this artifact alone."""
        place = ("--task", self.task, "--component", self.component)
        return ("--target", self.target.name, *place, "--precision", self.precision)

    @property
    def name(self) -> str:
        """What messages call it."""
        name = f"{self.task}/{self.component} {self.target.name} {self.precision}"
        return name if self.built_as == self.precision else f"{name} (as {self.built_as})"


class FollowUp(Protocol):
    """Work that needs several finished artifacts."""

    @property
    def name(self) -> str:
        """What messages call it; a run does work of one name once."""

    def script(self, results: Mapping[str, Path]) -> list[str]:
        """Shell lines that do it; ``results`` are those of the plans before."""

    def build(self, tools: VendorTools, *, force: bool) -> int | None:
        """Does it where it is out of date; the size of what was made, None where nothing was.

        Raises:
            ToolError: a tool failed.
        """


@dataclass(frozen=True)
class Plan(ABC):
    """What will be built: computed once, then shown, put into the key, run and recorded."""

    job: Job
    source: Source

    @property
    def supersedes(self) -> tuple[Location, ...]:
        """Artifacts that this one replaces."""
        return ()

    @property
    def follow_up(self) -> FollowUp | None:
        """What is made from this artifact and others."""
        return None

    @property
    def results(self) -> Mapping[str, Path]:
        """Files for a follow-up, and where the lines of :meth:`script` leave them."""
        return {}

    @abstractmethod
    def script(self, config: Path) -> list[str]:
        """Shell lines, for the top of the checkout, that make the artifact's files."""


AnyPlan = TypeVar("AnyPlan", bound=Plan)


class Backend(ABC, Generic[AnyPlan]):
    """Turns exported components into artifacts of one kind of target."""

    def holder(self, job: Job) -> Job:
        """The job whose artifact computes what ``job`` asks for: itself, or one it is part of."""
        return job

    @abstractmethod
    def check(self, job: Job, *, keep: bool) -> None:
        """Looks at the files that a user gives for an artifact, before any work.

        ``keep`` is False in a dry run: nothing is written then.

        Raises:
            ConfigError, InputError: one cannot be used.
        """

    @abstractmethod
    def plan(self, job: Job, source: Source) -> AnyPlan:
        """What building would do. Imports nothing heavy.

        Raises:
            ConfigError, InputError: it cannot be built.
            ToolError: a tool is missing.
        """

    @abstractmethod
    def key_inputs(self, plan: AnyPlan) -> dict[str, Any]:
        """Everything that decides the artifact's content. Imports nothing heavy.

        Raises:
            ToolError: a tool is missing.
        """

    @abstractmethod
    def build(self, plan: AnyPlan, folder: Path) -> dict[str, Any]:
        """Writes the artifact's files into an empty folder; returns its manifest fields.

        Raises:
            ToolError: a tool failed.
            ParityError: a rewrite changed what the graph computes.
        """


def shell(*command: str | Path) -> str:
    """A command as typed at the top of the checkout."""
    return shlex.join(shown(part) if isinstance(part, Path) else part for part in command)


def own(stage: str, config: Path, *arguments: str) -> str:
    """A command of ours as typed at the top of the checkout."""
    return shell(".venv/bin/python", "-m", *stage.split(), "--config", config, *arguments)


def manifest_fields(plan: Plan) -> dict[str, Any]:
    """Manifest fields that all backends share."""
    job = plan.job
    return {
        "pipeline": job.layout.pipeline.name,
        "task": job.task,
        "component": job.component,
        "target": job.target.name,
        "precision": job.precision,
        "built_as": None if job.built_as == job.precision else job.built_as,
        "checkpoint": plan.source.manifest.checkpoint,
    }
