"""Collects the estimates of built artifacts from their manifests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from compile.bmodel.estimates.published import PUBLISHED_F32_MS
from compile.bmodel.task_file import SUFFIX as COMBINED_SUFFIX
from configs.layout import MANIFEST_SUFFIX, Layout
from configs.schema import PipelineConfig, Task
from pipeline.manifest import CombinedManifest, ComponentManifest, Work, read_manifest
from pipeline.tpu_tools.answer_times import NetName, parts, total

REPORT_FILE = "estimate.json"


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True)


class NetEstimate(_Row):
    """One net on one chip."""

    task: Task
    component: str
    net: str
    target: str
    #: the set, and what the component is built as in it
    precision: str
    built_as: str
    cores: int
    #: a decoder's net that can check drafted tokens
    checks_drafts: bool
    #: the compiler's estimate; None where the chip's compiler prints none
    latency_ms: float | None
    work: Work | None
    #: ``compute`` or ``memory``
    bound: str | None
    fusions: dict[str, int]
    #: of the component's file or files; nets of one component share them
    file_bytes: int
    device_memory_bytes: int | None


class PartEstimate(_Row):
    """One part of a task: a caption, the image of a question, a match."""

    task: Task
    part: str
    target: str
    precision: str
    cores: int
    #: tokens that the decoder yields; None where the part has none
    tokens: int | None
    latency_ms: float | None
    #: the same part of our own float32 build on the same chip, where it is built
    own_f32_ms: float | None
    #: float32 on silicon, by the vendor, at the vendor's sizes
    published_f32_ms: float | None
    #: additions and multiplications by arithmetic, and bytes moved
    operations: dict[str, int] | None
    moved_bytes: int | None


class FileEstimate(_Row):
    """One file on disk: of a component, or of a whole task."""

    task: Task
    target: str
    precision: str
    #: component, or ``combined``
    what: str
    file_bytes: int
    device_memory_bytes: int | None


class EstimateReport(_Row):
    """Everything that ``python -m compile estimate`` knows of a pipeline."""

    pipeline: str
    note: str
    tokens: int
    answer_tokens: int
    #: tokens that a pass yields which checks drafted ones
    tokens_per_pass: float
    nets: tuple[NetEstimate, ...]
    parts: tuple[PartEstimate, ...]
    files: tuple[FileEstimate, ...]


NOTE = (
    "estimates of the vendor's compiler, not measurements; published figures are float32 on silicon"
)


def collect(
    pipeline: PipelineConfig,
    chips: set[str],
    tasks: Iterable[Task],
    tokens: int,
    answer: int,
    per_pass: float,
) -> EstimateReport:
    """Reads all manifests of the chosen chips and tasks.

    Args:
        pipeline: whose artifacts.
        chips: names of the SOPHON targets.
        tasks: which tasks.
        tokens: tokens of a caption, its end included.
        answer: tokens of an answer, its end included.
        per_pass: tokens that a pass yields which checks drafted ones.
    """
    layout = Layout(pipeline)
    nets: list[NetEstimate] = []
    files: list[FileEstimate] = []
    for task in tasks:
        for path in sorted(layout.task(task).glob(f"*/*{MANIFEST_SUFFIX}")):
            if path.parent.name == "onnx":
                continue
            manifest = read_manifest(ComponentManifest, path)
            if manifest.target in chips:
                nets += _nets(task, manifest)
                files.append(_file(task, manifest))
        files += _combined(layout.task(task), task, chips)
    return EstimateReport(
        pipeline=pipeline.name,
        note=NOTE,
        tokens=tokens,
        answer_tokens=answer,
        tokens_per_pass=per_pass,
        nets=tuple(nets),
        parts=tuple(_parts(nets, tokens, answer, per_pass)),
        files=tuple(files),
    )


def _nets(task: Task, manifest: ComponentManifest) -> Iterator[NetEstimate]:
    chip = manifest.key_inputs["settings"]["target"]
    for net in manifest.compiled_nets:
        yield NetEstimate(
            task=task,
            component=manifest.component,
            net=net.name,
            target=manifest.target,
            precision=manifest.precision,
            built_as=manifest.built_as or manifest.precision,
            cores=int(chip["cores"]),
            checks_drafts=net.answers_everywhere,
            latency_ms=net.latency_ms,
            work=net.work,
            bound=net.work.bound if net.work else None,
            fusions=dict(net.fusions),
            file_bytes=_bmodel_bytes(manifest),
            device_memory_bytes=manifest.device_memory_bytes,
        )


def _bmodel_bytes(manifest: ComponentManifest) -> int:
    """Size of the BModels: host tables lie beside them, in the host's memory."""
    return sum(f.size_bytes for name, f in manifest.files.items() if name.endswith(".bmodel"))


def _file(task: Task, manifest: ComponentManifest) -> FileEstimate:
    return FileEstimate(
        task=task,
        target=manifest.target,
        precision=manifest.precision,
        what=manifest.component,
        file_bytes=_bmodel_bytes(manifest),
        device_memory_bytes=manifest.device_memory_bytes,
    )


def _combined(folder: Path, task: Task, chips: set[str]) -> Iterator[FileEstimate]:
    for path in sorted(folder.glob(f"*/*{COMBINED_SUFFIX}")):
        manifest = read_manifest(CombinedManifest, path)
        if manifest.target in chips:
            yield FileEstimate(
                task=task,
                target=manifest.target,
                precision=manifest.precision,
                what="combined",
                file_bytes=sum(record.size_bytes for record in manifest.files.values()),
                device_memory_bytes=manifest.device_memory_bytes,
            )


def _parts(
    nets: list[NetEstimate], tokens: int, answer: int, per_pass: float
) -> Iterator[PartEstimate]:
    sets: dict[tuple[Task, str, str, int], dict[NetName, NetEstimate]] = {}
    for net in nets:
        members = sets.setdefault((net.task, net.target, net.precision, net.cores), {})
        members[(net.component, net.net)] = net
    for (task, target, precision, cores), members in sets.items():
        length = answer if task == "vqa" else tokens
        floats = _latencies(sets.get((task, target, "f32", cores), {}))
        drafts = any(net.checks_drafts for net in members.values())
        for part in parts(task, set(members), length, per_pass if drafts else None):
            decodes = any(component == "text_decoder" for component, _ in part.calls)
            yield PartEstimate(
                task=task,
                part=part.name,
                target=target,
                precision=precision,
                cores=cores,
                tokens=length if decodes else None,
                latency_ms=total(part, _latencies(members)),
                own_f32_ms=total(part, floats),
                published_f32_ms=PUBLISHED_F32_MS.get(target, {}).get((task, part.name)),
                operations=_operations(part.calls.items(), members),
                moved_bytes=_moved(part.calls.items(), members),
            )


def _latencies(members: dict[NetName, NetEstimate]) -> dict[NetName, float | None]:
    return {name: net.latency_ms for name, net in members.items()}


def _operations(
    calls: Iterable[tuple[NetName, int]], members: dict[NetName, NetEstimate]
) -> dict[str, int] | None:
    summed: dict[str, int] = {}
    for name, count in calls:
        net = members.get(name)
        if net is None or net.work is None:
            return None
        for arithmetic, operations in net.work.operations.items():
            summed[arithmetic] = summed.get(arithmetic, 0) + operations * count
    return summed


def _moved(calls: Iterable[tuple[NetName, int]], members: dict[NetName, NetEstimate]) -> int | None:
    moved = 0
    for name, count in calls:
        net = members.get(name)
        if net is None or net.work is None:
            return None
        moved += net.work.moved_bytes * count
    return moved
