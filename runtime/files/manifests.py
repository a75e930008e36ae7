"""Manifests: the one contract between stages (docs/manifest.md), read and written here alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Dict, Iterator, Literal, Mapping, Optional, Tuple, Type, TypeVar

from ..errors import ArtifactError
from .integrity import FileRecord, check_files
from .nets import HostLookup as HostLookup
from .nets import Net as Net
from .nets import TensorSpec as TensorSpec
from .records import check_names, from_json

SCHEMA_VERSION = 1
TASK_MANIFEST = "manifest.json"
COMPONENT_SUFFIX = ".manifest.json"
REFERENCE_DATA_SUFFIX = ".reference.npz"


@dataclass(frozen=True)
class Rewrite:
    """A graph rewrite and the proof that it changed nothing."""

    name: str
    reason: str
    sites: int
    #: largest absolute difference against the plain graph under onnxruntime
    max_abs_error: float


@dataclass(frozen=True)
class Checkpoint:
    """Identity of the weights an artifact was made from."""

    source: str
    revision: Optional[str]
    weights_sha256: str
    architecture: str


@dataclass(frozen=True)
class QuantizedNet:
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
    measured_error: Optional[float]

    def __post_init__(self) -> None:
        check_names("table", self.table)
        check_names("thresholds", self.thresholds)


@dataclass(frozen=True)
class Quantization:
    """How integers were calibrated (docs/quantization.md)."""

    source: str
    samples: int
    seed: int
    #: digest of the examples
    digest: str
    method: str
    nets: Mapping[str, QuantizedNet]


@dataclass(frozen=True)
class TextSettings:
    """Token ids and text handling of a checkpoint."""

    start_token_id: int
    end_token_id: int
    pad_token_id: int
    cls_token_id: int
    enc_token_id: Optional[int]
    vocabulary_size: int
    question_start: Literal["cls", "enc"]
    maximum_positions: int
    lower_case: bool


@dataclass(frozen=True)
class ImageSettings:
    """The checkpoint's image processor: size in pixels, filter name, scale and normalisation."""

    height: int
    width: int
    resample: Literal["bicubic", "bilinear", "nearest", "lanczos"]
    rescale_factor: float
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]


@dataclass(frozen=True)
class Dimensions:
    """Sizes of the model."""

    layers: int
    heads: int
    head_size: int
    hidden_size: int
    vision_hidden_size: int
    image_tokens: int
    feature_size: Optional[int] = None


@dataclass(frozen=True)
class ShapeVariants:
    """Further lengths that chips' nets were compiled for."""

    batch: Tuple[int, ...] = ()
    text_tokens: Tuple[int, ...] = ()
    past_tokens: Tuple[int, ...] = ()
    beams: Tuple[int, ...] = ()


@dataclass(frozen=True)
class StaticShapes:
    """Lengths that fixed-shape artifacts were compiled for."""

    batch: int
    text_tokens: int
    past_tokens: Optional[int] = None
    draft_tokens: int = 0
    variants: ShapeVariants = ShapeVariants()


@dataclass(frozen=True)
class _Manifest:
    """What all manifests say."""

    kind: ClassVar[str]

    #: the manifest's own path; not in the file
    path: Path
    pipeline: str
    task: str
    files: Mapping[str, FileRecord]
    key: str

    def __post_init__(self) -> None:
        check_names("files", *self.files)

    @property
    def folder(self) -> Path:
        """The folder that file names are relative to."""
        return self.path.parent

    @property
    def runtime_files(self) -> Dict[str, FileRecord]:
        """The files that running needs: verification's reference data may be left behind."""
        return {
            name: record
            for name, record in self.files.items()
            if not name.endswith(REFERENCE_DATA_SUFFIX)
        }

    def check_files(self, *, digests: bool = True, remembered: bool = False) -> None:
        """Checks that every file that running needs has the recorded size and, if asked, digest.

        Args:
            digests: compare SHA-256 digests too.
            remembered: digests that were compared before count (``runtime.files.integrity``).
        """
        files = self.runtime_files
        check_files(self.path, self.folder, files, digests=digests, remembered=remembered)


@dataclass(frozen=True)
class ComponentManifest(_Manifest):
    """One artifact: written last, so its existence means that its files are complete."""

    kind = "component"

    component: str
    target: str
    #: the set this artifact belongs to, by which it is selected
    precision: str
    nets: Tuple[Net, ...]
    key_inputs: Mapping[str, Any]
    tools: Mapping[str, str]
    checkpoint: Checkpoint
    #: what this component really is within the set, where that differs (vision encoder ``int8``,
    #: text decoder ``w8f16`` in one ``int8`` set)
    built_as: Optional[str] = None
    #: other components of the task that this artifact's nets compute as well
    includes: Tuple[str, ...] = ()
    rewrites: Tuple[Rewrite, ...] = ()
    commands: Tuple[Tuple[str, ...], ...] = ()
    device_memory_bytes: Optional[int] = None
    #: the vendor's memory layout for the chip's SoC: MiB by name, ``npu``, ``vpu``, ``vpp``
    memory_layout_mib: Optional[Mapping[str, int]] = None
    #: precision int8: what it was calibrated with, and what became integers (sophon)
    quantization: Optional[Quantization] = None

    @property
    def compiled_nets(self) -> Tuple[Net, ...]:
        """All nets, each in every shape that it was compiled for."""
        return tuple(shape for net in self.nets for shape in net.shapes)

    def net(self, name: str) -> Net:
        """The net called ``name``.

        Raises:
            ArtifactError: the artifact has no such net.
        """
        for net in self.nets:
            if net.name == name:
                return net
        known = ", ".join(net.name for net in self.nets)
        raise ArtifactError(f"{self.path}: nets: no net '{name}' (it has {known}); rebuild it")


@dataclass(frozen=True)
class TaskManifest(_Manifest):
    """What must be known about a task, whatever the target; its files are the processor's."""

    kind = "task"

    checkpoint: Checkpoint
    components: Tuple[str, ...]
    text: TextSettings
    image: ImageSettings
    dimensions: Dimensions
    shapes: StaticShapes
    #: the only pictures that the checkpoint knows, where these are not photographs
    domain: Optional[str] = None


@dataclass(frozen=True)
class CombinedManifest(_Manifest):
    """All nets of a task for one target and precision in one file."""

    kind = "combined"

    target: str
    precision: str
    key_inputs: Mapping[str, Any]
    commands: Tuple[Tuple[str, ...], ...]
    #: of the whole file
    device_memory_bytes: int
    tools: Mapping[str, str]
    #: component -> key of the artifact that went in
    components: Mapping[str, str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.files) != 1:
            raise ValueError(f"files: {len(self.files)} files, must be one")

    @property
    def file(self) -> str:
        """Name of the one file."""
        return next(iter(self.files))


AnyManifest = TypeVar("AnyManifest", TaskManifest, ComponentManifest, CombinedManifest)


def read_manifest(kind: Type[AnyManifest], path: Path, *, unknown: bool = True) -> AnyManifest:
    """Reads a manifest.

    Args:
        kind: which one it must be.
        path: the file.
        unknown: keys that a later writer of the same schema version adds are no error.

    Raises:
        ArtifactError: missing, damaged, newer than this reader, or naming files outside its folder.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path}: no such manifest; build or copy the artifact first") from None
    except OSError as error:
        reason = error.strerror or error
        raise ArtifactError(f"{path}: cannot be read ({reason}); copy it again") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not isinstance(data, dict):
        raise _damaged(path, "not an object")
    version = data.pop("schema_version", None)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: schema_version {str(version)[:20]} is newer than this version reads "
            f"({SCHEMA_VERSION}); update it, or rebuild the artifact"
        )
    if version != SCHEMA_VERSION or data.pop("kind", None) != kind.kind:
        raise _damaged(path, f"not a {kind.kind} manifest of schema_version {SCHEMA_VERSION}")
    try:
        return from_json(kind, {**data, "path": path}, unknown=unknown)
    except ValueError as error:
        raise _damaged(path, error) from None


def read_task_manifest(path: Path) -> TaskManifest:
    """Reads ``manifest.json`` of a task folder; see ``read_manifest``."""
    return read_manifest(TaskManifest, path)


def read_component_manifest(path: Path) -> ComponentManifest:
    """Reads a ``<stem>.manifest.json``; see ``read_manifest``."""
    return read_manifest(ComponentManifest, path)


def component_manifests(folder: Path) -> Iterator[ComponentManifest]:
    """All component manifests below a task folder, sorted by path."""
    for path in sorted(folder.glob("**/*" + COMPONENT_SUFFIX)):
        yield read_component_manifest(path)


def manifest_data(manifest: AnyManifest) -> Dict[str, Any]:
    """What a manifest's file holds."""
    data = {"schema_version": SCHEMA_VERSION, "kind": manifest.kind, **asdict(manifest)}
    del data["path"]
    return data


def manifest_text(manifest: AnyManifest) -> str:
    """The content of a manifest's file: indented, trailing newline."""
    data = manifest_data(manifest)
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _damaged(path: Path, reason: Any) -> ArtifactError:
    text = " ".join(str(reason).split()) or type(reason).__name__
    return ArtifactError(f"{path}: damaged manifest ({text}); rebuild the artifact")
