"""Which checks a selection needs, and the key that tells whether one was done before."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from configs.load import shown
from configs.schema import Component, TokenCheck
from configs.tolerances import Gap, Gate, judged_as, tolerances_digest
from pipeline.build import tool_versions
from pipeline.command import Selection
from pipeline.manifest import key_of, manifest_data
from pipeline.sources import source_digest
from verify.answers.quality import NamedGate, asked_agreement, named_gate
from verify.artifacts import ONNX, TargetArtifacts, TaskArtifacts
from verify.checkpoint.files import checkpoint_files
from verify.layers.stored_constants import FORMATS
from verify.opened import simulator_version
from verify.parity.combined import combined_file
from verify.results import Kind, Subject

#: BModels beyond this size take minutes per simulated call: simulated only when asked for.
LARGE_BMODEL_BYTES = 48 << 20
#: OpenVINO is checked in float32 and in whatever the device does by default: they fail differently.
OPENVINO_MODES = ("exact", "fast")
#: Gaps that look into an artifact.
LAYER_GAPS: tuple[Gap, ...] = ("checkpoint_layers", "target_layers", "target_constants")
#: Modules that decide the results of some kinds of checks alone; all others count for every kind.
_ONLY_FOR: dict[str, tuple[Kind, ...]] = {
    "runtime.tasks.answering": ("host", "tokens", "scores"),
    "runtime.tasks.generating": ("host", "tokens", "scores"),
    "runtime.tasks.matching": ("host", "tokens", "scores"),
    "runtime.tasks.registry": ("host", "tokens", "scores"),
    "runtime.tasks.task": ("host", "tokens", "scores"),
    "verify.answers.quality": ("tokens", "scores"),
    "verify.answers.whole_answers": ("tokens", "scores"),
    "verify.checkpoint.answers": ("tokens", "scores"),
    "verify.checkpoint.trace": ("host", "layers"),
    "verify.host": ("host",),
    "verify.layers.checks": ("layers",),
    "verify.layers.chip_constants": ("layers",),
    "verify.layers.stored_constants": ("layers",),
    "verify.parity.combined": ("file",),
    "verify.parity.components": ("component",),
}
#: Modules that write down what checks found.
_WRITES_DOWN = ("verify.verdict", "verify.verdicts")
#: And those that run the artifacts of one backend alone. Simulators: see ``simulator_version``.
_RUNS = {
    "runtime.decoding.board_run": "board",
    "runtime.decoding.openvino_run": "openvino",
    "runtime.sessions.board_session": "board",
    "runtime.sessions.openvino_models": "openvino",
    "runtime.sessions.openvino_session": "openvino",
    "runtime.sessions.simulated_session": "simulator",
    "runtime.simulator": "simulator",
}
#: Components that take text of a fixed length on chips, hence padding.
PADDED: tuple[Component, ...] = ("text_encoder", "text_encoder_unimodal", "text_decoder")


@dataclass(frozen=True)
class Planned:
    """One check to do, or done before."""

    subject: Subject
    key: str
    task: TaskArtifacts
    artifacts: TargetArtifacts
    tokens: TokenCheck | None = None
    #: the share of equal answers that the pipeline file asks for; None: configs/tolerances.yaml
    agreement: Gate | None = None
    #: what the answers' quality may lose
    quality: NamedGate | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that one verification covers."""

    checks: tuple[Planned, ...]
    #: artifacts whose simulation takes too long to be done unasked
    not_simulated: tuple[str, ...]


def make_plan(
    selection: Selection, tasks: list[TaskArtifacts], config: Path, *, full: bool
) -> Plan:
    """Lists the checks of a selection, cheapest and most basic first.

    Raises:
        ConfigError: the pipeline file does not say how many answers of a target to compare.
    """
    checks: list[Planned] = []
    not_simulated: list[str] = []
    generating = next((task for task in tasks if task.task != "itm"), None)
    if generating is not None and not selection.components:
        checks.append(_search_rules(generating))
    # Task by task: one task's nets are all that has to fit into memory.
    for task in tasks:
        checks += _onnx_checks(selection, task, config)
        for artifacts in task.targets:
            if artifacts.simulated and not (full or simulated_by_default(selection, artifacts)):
                not_simulated.append(f"{task.task} {artifacts.name} {artifacts.precision}")
                checks += _constant_checks(selection, task, artifacts)
                checks += _combined(selection, task, artifacts)
            else:
                checks += _target_checks(selection, task, artifacts, config)
    return Plan(tuple(checks), tuple(not_simulated))


def simulated_by_default(selection: Selection, artifacts: TargetArtifacts) -> bool:
    """Whether a chip's artifacts are small enough to simulate unasked."""
    largest = max(
        record.size_bytes
        for manifest in artifacts.components.values()
        for record in manifest.files.values()
    )
    return selection.pipeline.verify.simulate and largest <= LARGE_BMODEL_BYTES


def _onnx_checks(selection: Selection, task: TaskArtifacts, config: Path) -> Iterator[Planned]:
    if not selection.components:
        yield _host(selection, task)
    for component in selection.task_components(task.task):
        yield _component(selection, task, task.onnx, component, "hf_vs_wrapper")
        yield _component(selection, task, task.onnx, component, "checkpoint_layers")
        yield _component(selection, task, task.onnx, component, "wrapper_vs_onnxruntime")
        if component in PADDED:
            yield _component(
                selection, task, task.onnx, component, "wrapper_vs_onnxruntime", "padded"
            )
    yield from _answers(selection, task, task.onnx, "", config)


def _target_checks(
    selection: Selection, task: TaskArtifacts, artifacts: TargetArtifacts, config: Path
) -> Iterator[Planned]:
    yield from _constant_checks(selection, task, artifacts)
    yield from _combined(selection, task, artifacts)
    modes = ("",) if artifacts.simulated else OPENVINO_MODES
    for mode in modes:
        for component in selection.task_components(task.task):
            yield _component(selection, task, artifacts, component, "onnxruntime_vs_target", mode)
            if mode == "exact" and _comparable(task.onnx, artifacts, component):
                yield _component(selection, task, artifacts, component, "target_layers", mode)
        yield from _answers(selection, task, artifacts, mode, config)


def _constant_checks(
    selection: Selection, task: TaskArtifacts, artifacts: TargetArtifacts
) -> Iterator[Planned]:
    """A chip's weights are read from its file, which needs no simulator."""
    for component in selection.task_components(task.task):
        if artifacts.simulated and artifacts.stored(component) in FORMATS:
            yield _component(selection, task, artifacts, component, "target_constants")


def _combined(
    selection: Selection, task: TaskArtifacts, artifacts: TargetArtifacts
) -> Iterator[Planned]:
    """All nets of a task in one file: what a board loads."""
    if not artifacts.simulated or selection.components:
        return
    combined = combined_file(artifacts, task.task)
    if combined is not None:
        subject = Subject(
            "combined_file", task.task, None, artifacts.name, artifacts.precision, "file"
        )
        inputs = {"file": combined.files[combined.file].sha256, "artifacts": artifacts.identities}
        yield Planned(subject, _key(subject, artifacts, inputs), task, artifacts)


def _comparable(onnx: TargetArtifacts, artifacts: TargetArtifacts, component: Component) -> bool:
    """Whether an IR can be compared layer by layer: it takes the contract's inputs."""
    manifest = artifacts.components[component]
    mine, theirs = manifest.nets, onnx.components[component].nets
    names = {spec.name for spec in theirs[0].inputs}
    own = {spec.name for spec in mine[0].inputs}
    # One model may compute image states and their projections, from the image.
    return len(mine) == 1 and (own == names or bool(manifest.includes))


def _host(selection: Selection, task: TaskArtifacts) -> Planned:
    subject = Subject("checkpoint_vs_host", task.task, None, ONNX, task.onnx.precision, "host")
    inputs = {
        "onnx": task.onnx.identities,
        "task_manifest": manifest_data(task.manifest),
        "checkpoint": checkpoint_files(selection.pipeline.tasks[task.task]),
        "task": selection.pipeline.tasks[task.task].model_dump(mode="json"),
        "seed": selection.pipeline.verify.seed,
        "tools": tool_versions("transformers", "torch"),
    }
    return Planned(subject, _key(subject, task.onnx, inputs), task, task.onnx)


def _search_rules(task: TaskArtifacts) -> Planned:
    """Once for all tasks, and again only for other code: no net and no checkpoint is in it."""
    subject = Subject("search_rules", task.task, None, ONNX, task.onnx.precision, "host")
    decides = {
        # Whichever task a selection begins with.
        "subject": {**subject.__dict__, "task": None},
        "sources": source_digest("verify.host.search_rules"),
        "tools": tool_versions("transformers", "torch", "numpy"),
    }
    return Planned(subject, key_of(decides), task, task.onnx)


def _component(
    selection: Selection,
    task: TaskArtifacts,
    artifacts: TargetArtifacts,
    component: Component,
    gap: Gap,
    variant: str = "",
) -> Planned:
    kind: Kind = "layers" if gap in LAYER_GAPS else "component"
    subject = Subject(gap, task.task, component, artifacts.name, artifacts.precision, kind, variant)
    # Real inputs come from upstream graphs, so all of them count.
    inputs = {
        "onnx": task.onnx.identities,
        "artifact": artifacts.identities[component],
        "task_manifest": manifest_data(task.manifest),
        "scenes": selection.pipeline.verify.component_scenes,
        "seed": selection.pipeline.verify.seed,
    }
    if gap == "checkpoint_layers":
        inputs["checkpoint"] = checkpoint_files(selection.pipeline.tasks[task.task])
        inputs["tools"] = tool_versions("transformers", "torch")
    return Planned(subject, _key(subject, artifacts, inputs), task, artifacts)


def _answers(
    selection: Selection,
    task: TaskArtifacts,
    artifacts: TargetArtifacts,
    variant: str,
    config: Path,
) -> Iterator[Planned]:
    if selection.components:
        return
    tokens = selection.pipeline.verify.tokens.get(artifacts.name)
    if tokens is None:
        raise ConfigError(
            f"{config}: verify.tokens.{artifacts.name}: missing; say how many scenes to compare, "
            "e.g. {scenes: 10}"
        )
    kind: Kind = "scores" if task.task == "itm" else "tokens"
    subject = Subject("tokens", task.task, None, artifacts.name, artifacts.precision, kind, variant)
    file = shown(config)
    quality = named_gate(selection.pipeline, task.task, artifacts, variant, file)
    asked = asked_agreement(selection.pipeline, task.task, artifacts, variant, file)
    inputs = {
        "quality": quality.gate.model_dump(mode="json") if quality else None,
        "artifacts": artifacts.identities,
        "tokens": tokens.model_dump(mode="json"),
        "agreement": asked.min_agreement if asked else None,
        "task_manifest": manifest_data(task.manifest),
        "seed": selection.pipeline.verify.seed,
        "tools": tool_versions("transformers", "torch"),
    }
    key = _key(subject, artifacts, inputs)
    yield Planned(subject, key, task, artifacts, tokens, asked, quality)


def _key(subject: Subject, artifacts: TargetArtifacts, inputs: dict[str, Any]) -> str:
    return key_of(
        {
            "subject": subject.__dict__,
            "inputs": inputs,
            "tolerances": tolerances_digest(),
            "judged_as": judged_as(artifacts.name),
            "sources": check_sources(subject.kind, artifacts),
            "backend": _backend(artifacts),
        }
    )


def check_sources(kind: Kind, artifacts: TargetArtifacts) -> str:
    """Digest of the modules that decide a check's result."""
    backend = artifacts.target.backend if artifacts.target else ONNX
    unused = [name for name, kinds in _ONLY_FOR.items() if kind not in kinds]
    unused += _WRITES_DOWN
    unused += [name for name, runs in _RUNS.items() if runs != backend]
    return source_digest("verify.pipeline", without=unused)


@cache
def _host_tools() -> dict[str, str]:
    return tool_versions("numpy", "onnxruntime", "pillow", "tokenizers")


def _backend(artifacts: TargetArtifacts) -> dict[str, Any]:
    versions: dict[str, Any] = dict(_host_tools())
    if artifacts.simulated:
        versions["simulator"] = simulator_version()
    elif artifacts.name != ONNX:
        versions |= tool_versions("openvino")
        # The device's default precision depends on the processor.
        versions["processor"] = processor()
    return versions


@cache
def processor() -> str:
    """What decides this processor's default arithmetic: its name and features."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags")
    return key_of({line.split(":")[0].strip(): line for line in lines if line.startswith(wanted)})
