"""Manifests as the pipeline writes and reads them (docs/manifest.md); the runtime has a reader."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from configs.errors import InputError
from configs.schema import Component, Precision, StaticShapes, Task

SCHEMA_VERSION: Literal[1] = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Record):
    """Digest and size of one file."""

    sha256: str
    size_bytes: int


class TensorLayout(_Record):
    """How a file holds a tensor of the contract, where that is not as the contract has it."""

    #: the file's tensor has the contract's axes in this order
    order: tuple[int, ...]
    #: and its values times this
    scale: float = 1.0


class TensorSpec(_Record):
    """One input or output of a net."""

    #: the contract's name
    name: str
    #: what the file itself calls it
    artifact_name: str
    #: the contract's shape: integers, or axis names where dynamic
    shape: tuple[int | str, ...]
    #: numpy's dtype name
    dtype: str
    layout: TensorLayout | None = None


class State(_Record):
    """A past key or value that a net keeps between calls (openvino)."""

    #: the contract's input that is the state's content before a call
    past: str
    #: the contract's output that a call adds to it
    new: str
    #: what the file calls it
    artifact_name: str
    #: the file's state has the contract's axes in this order
    order: tuple[int, ...]


class HostLookup(_Record):
    """Rows that the host looks up in a table because the chip's net takes embeddings."""

    indices: str
    input: str
    table: str


class Estimate(_Record):
    """The vendor compiler's own latency estimate; never a measurement."""

    latency_ms: float
    source: str


class Work(_Record):
    """What a net has to do, as counted from what the vendor's compiler leaves; no measurement."""

    #: additions and multiplications, by arithmetic (``f32``, ``int8``), or ``all`` together
    operations: dict[str, int]
    #: bytes between the chip's own memory and DDR
    moved_bytes: int
    #: share of the estimated time in which the compute engine, the DMA engine is busy
    compute_share: float | None = None
    memory_share: float | None = None
    #: share of the DDR's bandwidth that is used on average
    bandwidth_share: float | None = None

    @property
    def bound(self) -> Literal["compute", "memory"] | None:
        """Which engine is busy for longer, where that is known."""
        if self.compute_share is None or self.memory_share is None:
            return None
        return "compute" if self.compute_share > self.memory_share else "memory"


class NetVariant(_Record):
    """A net compiled for another shape: a stage of the file's net, or a file of its own."""

    #: the net's name and its lengths, e.g. ``step_16p_3b``
    name: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    #: lengths by axis name
    axes: dict[str, int]
    estimate: Estimate | None = None
    fusions: dict[str, int] = {}
    work: Work | None = None


class Net(_Record):
    """One callable of an artifact."""

    name: str
    file: str
    artifact_net: str | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    host_lookups: tuple[HostLookup, ...] = ()
    estimate: Estimate | None = None
    #: inputs and outputs of the contract that are states of the net instead
    states: tuple[State, ...] = ()
    #: the file's input ``[rows]`` int32 that says which row of its states each row continues
    row_index: str | None = None
    #: attention fusions that the vendor's compiler made, by pattern name (sophon)
    fusions: dict[str, int] = {}
    #: operations and bytes of one call (sophon)
    work: Work | None = None
    #: lengths by axis name, where there are variants of them (sophon)
    axes: dict[str, int] = {}
    #: the same net for further shapes, which share its weights (sophon)
    variants: tuple[NetVariant, ...] = ()

    @property
    def stages(self) -> tuple[Net | NetVariant, ...]:
        """The net and its variants."""
        return (self, *self.variants)


class QuantizedNet(_Record):
    """What became integers in one net."""

    #: the quantize table, a file beside the BModel
    table: str
    #: the thresholds that its compiler was given, a file beside the BModel
    thresholds: str
    #: ``search``, or the file that the pipeline file named
    source: str
    #: operations of the table's net that compute on integers, and those in float
    integer_operations: int
    float_operations: int
    #: share of all multiplications that is done on integers
    integer_share: float
    #: relative error of the outputs against float, as measured on calibration inputs; null if given
    measured_error: float | None


class Quantization(_Record):
    """How integers were calibrated (docs/quantization.md)."""

    source: str
    samples: int
    seed: int
    #: digest of the examples
    digest: str
    method: str
    nets: dict[str, QuantizedNet]


class Rewrite(_Record):
    """A graph rewrite and the proof that it changed nothing."""

    name: str
    reason: str
    sites: int
    #: largest absolute difference against the plain graph under onnxruntime
    max_abs_error: float


class Checkpoint(_Record):
    """Identity of the weights an artifact was made from."""

    source: str
    revision: str | None
    weights_sha256: str
    architecture: str


class Build(_Record):
    """What building it cost."""

    seconds: float
    peak_memory_bytes: int | None = None


class ComponentManifest(_Record):
    """One artifact: written last, so its existence means that its files are complete."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["component"] = "component"
    pipeline: str
    task: Task
    component: Component
    target: str
    #: the set this artifact belongs to, by which it is selected
    precision: Precision
    #: what this component really is within the set, where that differs (vision encoder ``int8``,
    #: text decoder ``w8f16`` in one ``int8`` set)
    built_as: Precision | None = None
    #: other components of the task that this artifact's nets compute as well
    includes: tuple[Component, ...] = ()
    key: str
    key_inputs: dict[str, Any]
    nets: tuple[Net, ...]
    files: dict[str, FileRecord]
    rewrites: tuple[Rewrite, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    tools: dict[str, str]
    checkpoint: Checkpoint
    device_memory_bytes: int | None = None
    #: the vendor's memory layout for the chip's SoC: MiB by name, ``npu``, ``vpu``, ``vpp``
    memory_layout_mib: dict[str, int] | None = None
    #: precision int8: what it was calibrated with, and what became integers (sophon)
    quantization: Quantization | None = None
    build: Build


class TextSettings(_Record):
    """Token ids and text handling of a checkpoint."""

    start_token_id: int
    end_token_id: int
    pad_token_id: int
    cls_token_id: int
    enc_token_id: int | None
    vocabulary_size: int
    question_start: Literal["cls", "enc"]
    maximum_positions: int
    lower_case: bool


class ImageSettings(_Record):
    """The checkpoint's image processor."""

    height: int
    width: int
    resample: Literal["bicubic", "bilinear", "nearest", "lanczos"]
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Dimensions(_Record):
    """Sizes of the model."""

    layers: int
    heads: int
    head_size: int
    hidden_size: int
    vision_hidden_size: int
    image_tokens: int
    feature_size: int | None = None


class TaskManifest(_Record):
    """What the runtime must know about a task, whatever the target."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["task"] = "task"
    pipeline: str
    task: Task
    checkpoint: Checkpoint
    components: tuple[Component, ...]
    text: TextSettings
    image: ImageSettings
    dimensions: Dimensions
    shapes: StaticShapes
    files: dict[str, FileRecord]
    key: str


AnyManifest = TypeVar("AnyManifest", TaskManifest, ComponentManifest)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_record(path: Path) -> FileRecord:
    """Digest and size of a file."""
    return FileRecord(sha256=file_sha256(path), size_bytes=path.stat().st_size)


def key_of(key_inputs: dict[str, Any]) -> str:
    """Digest of everything that decides an artifact's content: sorted JSON, SHA-256."""
    text = json.dumps(key_inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(model: type[AnyManifest], path: Path) -> AnyManifest:
    """Reads a manifest.

    Raises:
        InputError: missing, damaged, or written in another schema version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no manifest; build the artifact first") from None
    try:
        version = json.loads(text).get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{path}: schema_version {version} is not {SCHEMA_VERSION}; rebuild the artifact "
                "or use the release that wrote it"
            )
        return model.model_validate_json(text)
    except (json.JSONDecodeError, ValidationError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: damaged manifest ({reason}); rebuild the artifact") from None
