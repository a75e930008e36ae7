"""Reads the manifests of artifacts (docs/manifest.md) with the standard library only."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple

from ..errors import ArtifactError
from .integrity import FileRecord, check_files
from .nets import HostLookup as HostLookup
from .nets import Net as Net
from .nets import State as State
from .nets import TensorLayout as TensorLayout
from .nets import TensorSpec as TensorSpec
from .nets import read_net, safe_name

SCHEMA_VERSION = 1
TASK_MANIFEST = "manifest.json"
COMPONENT_SUFFIX = ".manifest.json"
REFERENCE_DATA_SUFFIX = ".reference.npz"


@dataclass(frozen=True)
class ComponentManifest:
    """One artifact: its nets, files and provenance. ``path`` is the manifest's own path."""

    path: Path
    pipeline: str
    task: str
    component: str
    target: str
    precision: str
    nets: Tuple[Net, ...]
    files: Mapping[str, FileRecord]
    key: str
    tools: Mapping[str, str] = field(default_factory=dict)
    rewrites: Tuple[Mapping[str, Any], ...] = ()
    weights_sha256: Optional[str] = None
    device_memory_bytes: Optional[int] = None
    #: the vendor's memory layout for the chip's SoC: MiB by name, ``npu`` the heap of its nets
    memory_layout_mib: Mapping[str, int] = field(default_factory=dict)
    #: what the component really is where that differs from ``precision``, the set it belongs to
    built_as: Optional[str] = None
    #: other components of the task that this artifact's nets compute as well
    includes: Tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder that file names are relative to."""
        return self.path.parent

    @property
    def stages(self) -> Tuple[Net, ...]:
        """All nets, each with its variants."""
        return tuple(stage for net in self.nets for stage in net.stages)

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
class TextSettings:
    """Token ids and text handling of a checkpoint."""

    start_token_id: int
    end_token_id: int
    pad_token_id: int
    cls_token_id: int
    enc_token_id: Optional[int]
    vocabulary_size: int
    question_start: str
    maximum_positions: int
    lower_case: bool


@dataclass(frozen=True)
class ImageSettings:
    """The checkpoint's image processor: size in pixels, filter name, scale and normalisation."""

    height: int
    width: int
    resample: str
    rescale_factor: float
    mean: Tuple[float, ...]
    std: Tuple[float, ...]


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
class StaticShapes:
    """Lengths that fixed-shape artifacts were compiled for."""

    batch: int
    text_tokens: int
    past_tokens: Optional[int] = None


@dataclass(frozen=True)
class TaskManifest:
    """What must be known about a task, whatever the target. ``path`` is the manifest's own path."""

    path: Path
    pipeline: str
    task: str
    components: Tuple[str, ...]
    text: TextSettings
    image: ImageSettings
    dimensions: Dimensions
    shapes: StaticShapes
    files: Mapping[str, FileRecord]
    checkpoint: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The task folder."""
        return self.path.parent

    def check_files(self, *, digests: bool = True, remembered: bool = False) -> None:
        """Checks the processor files as ``ComponentManifest.check_files`` does."""
        check_files(self.path, self.folder, self.files, digests=digests, remembered=remembered)


def read_task_manifest(path: Path) -> TaskManifest:
    """Reads ``manifest.json`` of a task folder.

    Raises:
        ArtifactError: missing, damaged, or written in a newer schema version.
    """
    data = _read(path, "task")
    where = str(path)
    try:
        image = data["image"]
        return TaskManifest(
            path=path,
            pipeline=str(data["pipeline"]),
            task=str(data["task"]),
            components=tuple(data["components"]),
            text=TextSettings(**_only(TextSettings, data["text"])),
            image=ImageSettings(
                height=int(image["height"]),
                width=int(image["width"]),
                resample=str(image["resample"]),
                rescale_factor=float(image["rescale_factor"]),
                mean=tuple(float(v) for v in image["mean"]),
                std=tuple(float(v) for v in image["std"]),
            ),
            dimensions=Dimensions(**_only(Dimensions, data["dimensions"])),
            shapes=StaticShapes(**_only(StaticShapes, data["shapes"])),
            files=_files(data["files"], where),
            checkpoint=data.get("checkpoint") or {},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from None


def read_component_manifest(path: Path) -> ComponentManifest:
    """Reads a ``<stem>.manifest.json``.

    Raises:
        ArtifactError: missing, damaged, newer than this reader, or naming files outside its folder.
    """
    data = _read(path, "component")
    where = str(path)
    try:
        memory = data.get("device_memory_bytes")
        return ComponentManifest(
            path=path,
            pipeline=str(data["pipeline"]),
            task=str(data["task"]),
            component=str(data["component"]),
            target=str(data["target"]),
            precision=str(data["precision"]),
            nets=tuple(read_net(net, where) for net in data["nets"]),
            files=_files(data["files"], where),
            key=str(data["key"]),
            tools=data.get("tools") or {},
            rewrites=tuple(data.get("rewrites") or ()),
            weights_sha256=(data.get("checkpoint") or {}).get("weights_sha256"),
            device_memory_bytes=None if memory is None else int(memory),
            memory_layout_mib={
                str(name): int(size) for name, size in (data.get("memory_layout_mib") or {}).items()
            },
            built_as=data.get("built_as"),
            includes=tuple(str(name) for name in data.get("includes") or ()),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from None


def component_manifests(folder: Path) -> Iterator[ComponentManifest]:
    """All component manifests below a task folder, sorted by path."""
    for path in sorted(folder.glob("**/*" + COMPONENT_SUFFIX)):
        yield read_component_manifest(path)


def _read(path: Path, kind: str) -> Dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such manifest; build or copy the artifact first") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); copy it again") from None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not isinstance(data, dict):
        raise ArtifactError(f"{path}: damaged manifest (not an object); rebuild the artifact")
    version = data.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: schema_version {version} is newer than this runtime reads "
            f"({SCHEMA_VERSION}); update the runtime"
        )
    if version != SCHEMA_VERSION or data.get("kind") != kind:
        raise ArtifactError(
            f"{path}: not a {kind} manifest of schema_version {SCHEMA_VERSION}; rebuild it"
        )
    return data


def _files(data: Mapping[str, Mapping[str, Any]], where: str) -> Dict[str, FileRecord]:
    return {
        safe_name(name, f"{where}: files"): FileRecord(
            sha256=str(record["sha256"]), size_bytes=int(record["size_bytes"])
        )
        for name, record in data.items()
    }


def _only(kind: Any, data: Mapping[str, Any]) -> Dict[str, Any]:
    # Keys that a later writer of the same schema version adds are not an error.
    return {key: data[key] for key in kind.__dataclass_fields__ if key in data}


def _damaged(path: Path, error: BaseException) -> ArtifactError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, KeyError):
        reason = f"key {reason} is missing"
    return ArtifactError(f"{path}: damaged manifest ({reason}); rebuild the artifact")
