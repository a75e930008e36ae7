"""Manifests (docs/manifest.md) for the stages that write them: the runtime's types, and keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from configs.errors import InputError
from configs.schema import Component, Precision, Task
from pipeline.runtime_errors import runtime_failures
from runtime.files import manifests
from runtime.files.integrity import FileRecord as FileRecord
from runtime.files.integrity import file_sha256 as file_sha256
from runtime.files.manifests import AnyManifest
from runtime.files.manifests import Checkpoint as Checkpoint
from runtime.files.manifests import CombinedManifest as CombinedManifest
from runtime.files.manifests import ComponentManifest as ComponentManifest
from runtime.files.manifests import Dimensions as Dimensions
from runtime.files.manifests import ImageSettings as ImageSettings
from runtime.files.manifests import Quantization as Quantization
from runtime.files.manifests import QuantizedNet as QuantizedNet
from runtime.files.manifests import Rewrite as Rewrite
from runtime.files.manifests import StaticShapes as StaticShapes
from runtime.files.manifests import TaskManifest as TaskManifest
from runtime.files.manifests import TextSettings as TextSettings
from runtime.files.manifests import manifest_data as manifest_data
from runtime.files.manifests import manifest_text as manifest_text
from runtime.files.nets import FIRST_LOGIT as FIRST_LOGIT
from runtime.files.nets import Estimate as Estimate
from runtime.files.nets import HostLookup as HostLookup
from runtime.files.nets import KeptConstant as KeptConstant
from runtime.files.nets import Net as Net
from runtime.files.nets import NetVariant as NetVariant
from runtime.files.nets import State as State
from runtime.files.nets import TensorLayout as TensorLayout
from runtime.files.nets import TensorSpec as TensorSpec
from runtime.files.nets import Work as Work
from runtime.files.records import from_json as from_json

#: Names that a stage may meet in its own manifests, by key.
_NAMES: dict[str, tuple[str, ...]] = {
    "task": get_args(Task),
    "component": get_args(Component),
    "components": get_args(Component),
    "includes": get_args(Component),
    "precision": get_args(Precision),
    "built_as": get_args(Precision),
}


def file_record(path: Path) -> FileRecord:
    """Digest and size of a file."""
    return FileRecord(sha256=file_sha256(path), size_bytes=path.stat().st_size)


def key_of(key_inputs: Mapping[str, Any]) -> str:
    """Digest of everything that decides an artifact's content: sorted JSON, SHA-256."""
    text = json.dumps(key_inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(kind: type[AnyManifest], path: Path) -> AnyManifest:
    """Reads a manifest that the pipeline wrote: its keys and names are all known.

    Raises:
        InputError: missing, damaged, or written in another schema version.
    """
    with runtime_failures():
        found = manifests.read_manifest(kind, path, unknown=False)
    for field, known in _NAMES.items():
        value = getattr(found, field, None)
        for name in value if isinstance(value, tuple | dict) else (value,):
            if name is not None and name not in known:
                unknown = ascii(name)[:60]
                raise InputError(f"{path}: {field}: {unknown} is unknown; rebuild the artifact")
    return found
