"""Finds the artifacts to verify, refuses missing and damaged ones, and says how to build them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import runtime.errors as runtime_errors
from configs.errors import InputError
from configs.layout import Layout
from configs.load import shown
from configs.precisions import PRECISIONS, Arithmetic, Precision
from configs.schema import (
    TASK_COMPONENTS,
    Component,
    OpenVinoTarget,
    PipelineConfig,
    TargetConfig,
    Task,
)
from pipeline.command import Selection
from pipeline.manifest import TaskManifest, key_of, read_manifest
from pipeline.runtime_errors import runtime_failures as runtime_failures
from pipeline.settings import artifact_settings, differences
from runtime.files.manifests import ComponentManifest, component_manifests
from verify.parity.lineage import recorded_inputs

ONNX = "onnx"
_COSTS = ("estimate", "fusions", "work", "variants")


@dataclass(frozen=True)
class TargetArtifacts:
    """All components of a task on one target in one precision; ``target`` is None for ONNX."""

    target: TargetConfig | None
    precision: Precision
    components: dict[Component, ComponentManifest]
    #: the pipeline file that names them
    file: Path | None = None

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

    def rebuild(self, task: Task) -> str:
        """The make command that builds them anew."""
        return build_command(task, self.target, self.precision, self.file)

    @property
    def simulated(self) -> bool:
        """Whether this machine can only run them on the vendor's simulator."""
        return self.target is not None and self.target.backend == "sophon"

    @property
    def fixed_shapes(self) -> bool:
        """Whether nets take no other lengths than they were compiled for."""
        target = self.target
        return self.simulated or (isinstance(target, OpenVinoTarget) and target.static_shapes)


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
        InputError: an artifact is missing, damaged, made from other weights than its ONNX, or
            compiled for other settings than those of the pipeline file.
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
        onnx = _collect(every, task, None, "f32", folder, selection.file)
        targets = tuple(
            _collect(every, task, target, precision, folder, selection.file)
            for target, precision in selection.targets
        )
        for artifacts in (onnx, *targets):
            _check(artifacts, onnx)
            if artifacts.target is not None:
                _check_settings(selection.pipeline, manifest, artifacts, artifacts.target)
        found.append(TaskArtifacts(task, manifest, onnx, targets))
    return found


def arithmetic(
    artifacts: TargetArtifacts, mode: str, component: Component | None = None
) -> Arithmetic:
    """What a target computes in: a chip in the artifact's precision, OpenVINO as its hint says.

    A set of several precisions is judged by its name; a component by what it was built as.
    """
    if artifacts.simulated:
        stored = artifacts.stored(component) if component else artifacts.precision
        return PRECISIONS[stored].arithmetic
    if mode != "fast":
        return "f32"
    from runtime.sessions.openvino_session import shared_core

    hint = str(shared_core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name())
    known: dict[str, Arithmetic] = {"f16": "f16", "bf16": "bf16"}
    return known.get(hint, "f32")


def build_command(
    task: Task, target: TargetConfig | None, precision: Precision, file: Path | None
) -> str:
    """The make command that builds an artifact of a pipeline file."""
    config = f" CONFIG={shown(file)}" if file else ""
    if target is None:
        return f"make export TASK={task}{config}"
    goal = "ir" if target.backend == "openvino" else "bmodel"
    # `make ir` alone means this one.
    chosen = "" if target.name == "openvino" else f" TARGET={target.name}"
    return f"make {goal}{chosen} TASK={task} PRECISION={precision}{config}"


def _collect(
    every: list[ComponentManifest],
    task: Task,
    target: TargetConfig | None,
    precision: Precision,
    folder: Path,
    file: Path,
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
                f"{shown(folder)}: no {component} for {name} {precision}; "
                f"run: {build_command(task, target, precision, file)}"
            )
        if len(matching) > 1:
            paths = ", ".join(shown(m.path) for m in matching)
            raise InputError(
                f"{shown(folder)}: several {component} for {name} {precision} ({paths}); "
                "delete the stale one"
            )
        components[component] = matching[0]
    return TargetArtifacts(target, precision, components, file)


def _check(artifacts: TargetArtifacts, onnx: TargetArtifacts) -> None:
    for component, manifest in artifacts.components.items():
        rebuild = artifacts.rebuild(_task(manifest))
        weights = onnx.components[component].checkpoint.weights_sha256
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


def _check_settings(
    pipeline: PipelineConfig, task: TaskManifest, artifacts: TargetArtifacts, target: TargetConfig
) -> None:
    for component, manifest in artifacts.components.items():
        if manifest.component != component:
            continue  # a part of another one
        recorded = recorded_inputs(manifest).get("settings")
        names = (component, target, artifacts.precision)
        wanted = artifact_settings(pipeline, _task(task), *names, task.dimensions.image_tokens)
        found = list(differences(recorded or {}, wanted))
        if found:
            reason = f"settings.{found[0]}" if recorded else "no settings are recorded"
            raise InputError(
                f"{shown(manifest.path)}: stale: {reason}; run: {artifacts.rebuild(_task(task))}"
            )


def _task(manifest: ComponentManifest | TaskManifest) -> Task:
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
