"""Finds the artifacts to verify, refuses missing and damaged ones, and says how to build them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import runtime.errors as runtime_errors
from configs.errors import InputError
from configs.layout import Layout
from configs.load import shown
from configs.schema import TASK_COMPONENTS, Component, Precision, TargetConfig, Task
from pipeline.command import Selection
from pipeline.manifest import TaskManifest, key_of, read_manifest
from pipeline.runtime_errors import runtime_failures as runtime_failures
from runtime.files.manifests import ComponentManifest, component_manifests

ONNX = "onnx"
_COSTS = ("estimate", "fusions", "work", "variants")


@dataclass(frozen=True)
class TargetArtifacts:
    """All components of a task on one target in one precision; ``target`` is None for ONNX."""

    target: TargetConfig | None
    precision: Precision
    components: dict[Component, ComponentManifest]

    @property
    def name(self) -> str:
        """Target name as manifests and verify.json have it."""
        return self.target.name if self.target else ONNX

    @cached_property
    def identities(self) -> dict[Component, str]:
        """Per component, a digest of what decides its answers."""
        return {name: identity_digest(item) for name, item in self.components.items()}

    def stored(self, component: Component) -> Precision:
        """What a component really is within the set."""
        built_as: Precision | None = self.components[component].built_as  # type: ignore[assignment]
        return built_as or self.precision

    @property
    def simulated(self) -> bool:
        """Whether this machine can only run them on the vendor's simulator."""
        return self.target is not None and self.target.backend == "sophon"


@dataclass(frozen=True)
class TaskArtifacts:
    """Everything of one task that takes part in a verification."""

    task: Task
    manifest: TaskManifest
    onnx: TargetArtifacts
    targets: tuple[TargetArtifacts, ...]


def find_artifacts(selection: Selection) -> list[TaskArtifacts]:
    """Reads and checks the manifests and file digests of everything selected.

    All components of a selected task are needed, whichever ones ``--component`` names: one
    component's real inputs are the others' outputs.

    Raises:
        InputError: an artifact is missing, damaged, or made from other weights than its ONNX.
    """
    layout = Layout(selection.pipeline)
    found = []
    for task in selection.tasks:
        path = layout.task_manifest(task)
        if not path.is_file():
            raise InputError(
                f"{shown(path)}: the task is not exported; run: make export TASK={task}"
            )
        manifest = read_manifest(TaskManifest, path)
        folder = layout.task(task)
        with runtime_failures():
            every = list(component_manifests(folder))
        onnx = _collect(every, task, None, "f32", folder_name=shown(folder))
        targets = tuple(
            _collect(every, task, target, precision, folder_name=shown(folder))
            for target, precision in selection.targets
        )
        for artifacts in (onnx, *targets):
            _check(artifacts, onnx)
        found.append(TaskArtifacts(task, manifest, onnx, targets))
    return found


def build_command(task: Task, target: TargetConfig | None, precision: Precision) -> str:
    """The make command that builds an artifact."""
    if target is None:
        return f"make export TASK={task}"
    goal = "ir" if target.backend == "openvino" else f"bmodel TARGET={target.name}"
    return f"make {goal} TASK={task} PRECISION={precision}"


def _collect(
    every: list[ComponentManifest],
    task: Task,
    target: TargetConfig | None,
    precision: Precision,
    *,
    folder_name: str,
) -> TargetArtifacts:
    name = target.name if target else ONNX
    components: dict[Component, ComponentManifest] = {}
    for component in TASK_COMPONENTS[task]:
        matching = [
            m
            for m in every
            if component in (m.component, *m.includes)
            and (m.target, m.precision) == (name, precision)
        ]
        if not matching:
            raise InputError(
                f"{folder_name}: no {component} for {name} {precision}; "
                f"run: {build_command(task, target, precision)}"
            )
        if len(matching) > 1:
            paths = ", ".join(shown(m.path) for m in matching)
            raise InputError(
                f"{folder_name}: several {component} for {name} {precision} ({paths}); "
                "delete the stale one"
            )
        components[component] = matching[0]
    return TargetArtifacts(target, precision, components)


def _check(artifacts: TargetArtifacts, onnx: TargetArtifacts) -> None:
    for component, manifest in artifacts.components.items():
        weights = onnx.components[component].checkpoint.weights_sha256
        rebuild = build_command(_task(manifest), artifacts.target, artifacts.precision)
        try:
            manifest.check_files()
        except runtime_errors.ArtifactError as error:
            reason = str(error).split(";")[0]
            raise InputError(f"{reason}; run: {rebuild} FORCE=1") from None
        if manifest.checkpoint.weights_sha256 != weights:
            raise InputError(
                f"{shown(manifest.path)}: made from other weights than the exported {component}; "
                f"run: {rebuild}"
            )


def _task(manifest: ComponentManifest) -> Task:
    for task in TASK_COMPONENTS:
        if task == manifest.task:
            return task
    raise InputError(f"{shown(manifest.path)}: task {manifest.task!r} is unknown; rebuild it")


def digest(manifest: ComponentManifest) -> dict[str, str]:
    """Digests of an artifact's files by name, as checked against the disk by ``find_artifacts``."""
    return {name: record.sha256 for name, record in sorted(manifest.files.items())}


def identity(manifest: ComponentManifest) -> dict[str, Any]:
    """What decides an artifact's answers: its files, and how the manifest maps tensors to them."""
    shapes = [asdict(net) for net in manifest.compiled_nets]
    # What a net costs changes no answer.
    decides = [{k: v for k, v in net.items() if k not in _COSTS} for net in shapes]
    return {"files": digest(manifest), "nets": decides}


def identity_digest(manifest: ComponentManifest) -> str:
    """Digest of what decides an artifact's answers."""
    return key_of(identity(manifest))
