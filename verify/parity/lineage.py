"""Whether an artifact was made from the exported graph that it is compared with.

A weight that is off by less than the target's own rounding cannot be seen in any answer; that the
artifact was compiled from another graph can.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from configs.load import shown
from pipeline.manifest import key_of
from runtime.files.manifests import ComponentManifest


def recorded_inputs(manifest: ComponentManifest) -> dict[str, Any]:
    """``key_inputs`` of an artifact's manifest: what it was compiled from, and for."""
    return dict(manifest.key_inputs)


def broken_lineage(
    manifest: ComponentManifest, exported: Mapping[Any, ComponentManifest]
) -> str | None:
    """Why an artifact does not stem from the exported graphs; None if it does.

    Args:
        manifest: of the artifact; ``key_inputs`` in its file says what it was compiled from.
        exported: the task's exported components, which the artifact is compared with.
    """
    inputs = recorded_inputs(manifest)
    if key_of(inputs) != manifest.key:
        return f"{shown(manifest.path)}: key_inputs: changed after the artifact was made"
    digests = {
        name: record.sha256 for part in exported.values() for name, record in part.files.items()
    }
    for graph in (inputs.get("onnx") or {}, *(inputs.get("included") or [])):
        for name, digest in graph.items():
            if digests.get(name, digest) != digest:
                return f"{shown(manifest.path)}: made from another {name} than the exported one"
    return None
