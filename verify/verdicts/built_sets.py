"""What lies on the disk, set by set: which manifests, and one digest that changes with any byte."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from configs.errors import BlipEdgeError
from configs.layout import MANIFEST_SUFFIX, Layout
from configs.load import shown
from configs.schema import Task
from pipeline.manifest import ComponentManifest, TaskManifest, key_of, manifest_data, read_manifest
from pipeline.runtime_errors import runtime_failures
from runtime.files.task_file import task_file
from verify.artifacts import ONNX, digest, identity_digest
from verify.verdicts.merging import set_name


@dataclass(frozen=True)
class BuiltSet:
    """All components of a task on one target in one precision."""

    #: component -> manifest, as messages name it
    components: dict[str, str]
    #: manifest -> file -> SHA-256
    artifacts: dict[str, dict[str, str]]
    #: of everything that decides what the set answers
    sha256: str


def built_sets(layout: Layout, tasks: Iterable[Task]) -> dict[str, BuiltSet]:
    """Every set below the tasks' folders; one with a damaged file is not there."""
    found: dict[str, BuiltSet] = {}
    for task in tasks:
        by_set: dict[tuple[str, str], list[ComponentManifest]] = {}
        for path in sorted(layout.task(task).glob(f"**/*{MANIFEST_SUFFIX}")):
            one = _sound(path)
            if one is not None:
                by_set.setdefault((one.target, one.precision), []).append(one)
        for (target, precision), manifests in by_set.items():
            found[set_name(task, target, precision)] = _built_set(layout, task, manifests)
    return found


def _sound(path: Path) -> ComponentManifest | None:
    try:
        with runtime_failures():
            manifest = read_manifest(ComponentManifest, path)
            manifest.check_files(remembered=True)
    except BlipEdgeError:
        return None  # whoever verifies it, hears why
    return manifest


def _built_set(layout: Layout, task: Task, manifests: list[ComponentManifest]) -> BuiltSet:
    parts = {name: one for one in manifests for name in (one.component, *one.includes)}
    decides: dict[str, object] = {name: identity_digest(one) for name, one in parts.items()}
    first = manifests[0]
    try:
        if first.target == ONNX:
            task_manifest = read_manifest(TaskManifest, layout.task_manifest(task))
            decides["task"] = manifest_data(task_manifest)
        keys = {one.component: one.key for one in manifests}
        with runtime_failures():
            combined = task_file(first.folder, first.target, first.precision, keys)
        decides["combined"] = combined and [record.sha256 for record in combined.files.values()]
    except BlipEdgeError as error:
        decides["damaged"] = str(error)
    return BuiltSet(
        {name: shown(one.path) for name, one in parts.items()},
        {shown(one.path): digest(one) for one in manifests},
        key_of(decides),
    )
