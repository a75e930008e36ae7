"""A task's nets in one file: components point at it instead of at files of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from ..errors import ArtifactError
from .integrity import FileRecord
from .manifests import SCHEMA_VERSION, ComponentManifest
from .nets import Net, safe_name

COMBINED_SUFFIX = ".combined.json"


@dataclass(frozen=True)
class TaskFile:
    """The file that holds all nets of a task for one target and precision."""

    path: Path
    file: str
    record: FileRecord
    device_memory_bytes: int
    #: component -> key of the artifact that went in
    keys: Mapping[str, str]


def task_file(
    folder: Path, target: str, precision: str, components: Mapping[str, str]
) -> Optional[TaskFile]:
    """The combined file of these components, or None where there is none.

    Args:
        folder: the target's folder below the task folder.
        target: name of the chip.
        precision: name of the set.
        components: component to the key of its artifact; a file made from others is out of date
            and not taken.

    Raises:
        ArtifactError: the description of a combined file is damaged.
    """
    for path in sorted(folder.glob("*" + COMBINED_SUFFIX)):
        found = read_task_file(path, target, precision)
        if found is None or dict(found.keys) != dict(components):
            continue
        model = folder / found.file
        if model.is_file():
            return found
    return None


def read_task_file(path: Path, target: str, precision: str) -> Optional[TaskFile]:
    """Reads the description of a combined file; None if it is another target's or set's.

    Raises:
        ArtifactError: damaged, or names a file outside its folder.
    """
    try:
        data: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data["schema_version"] != SCHEMA_VERSION or data["kind"] != "combined":
            raise ValueError("not a combined file of this schema version")
        if (data["target"], data["precision"]) != (target, precision):
            return None
        ((name, record),) = data["files"].items()
        return TaskFile(
            path=path,
            file=safe_name(name, f"{path}: files"),
            record=FileRecord(str(record["sha256"]), int(record["size_bytes"])),
            device_memory_bytes=int(data["device_memory_bytes"]),
            keys={str(key): str(value) for key, value in data["components"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArtifactError(f"{path}: damaged ({reason}); rebuild it, or delete it") from None


def in_one_file(chosen: List[ComponentManifest]) -> List[ComponentManifest]:
    """The same components, out of their combined file where there is a current one.

    Their own files need not be there then. Tables of host lookups stay files of their own.
    """
    folders = {item.folder for item in chosen}
    if len(folders) != 1:
        return chosen
    keys = {item.component: item.key for item in chosen}
    found = task_file(folders.pop(), chosen[0].target, chosen[0].precision, keys)
    if found is None:
        return chosen
    return [_pointed(item, found) for item in chosen]


def _pointed(item: ComponentManifest, found: TaskFile) -> ComponentManifest:
    own = {stage.file for net in item.nets for stage in net.stages}
    files = {name: record for name, record in item.files.items() if name not in own}
    return replace(
        item,
        nets=tuple(_moved(net, found.file) for net in item.nets),
        files={**files, found.file: found.record},
        # Of the whole file, all of which is loaded with the first component.
        device_memory_bytes=found.device_memory_bytes,
    )


def _moved(net: Net, file: str) -> Net:
    variants = tuple(replace(stage, file=file) for stage in net.variants)
    return replace(net, file=file, variants=variants)
