"""A task's nets in one file: components point at it instead of at files of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import List, Mapping, Optional

from .manifests import CombinedManifest, ComponentManifest, read_manifest
from .nets import Net

COMBINED_SUFFIX = ".combined.json"


def task_file(
    folder: Path, target: str, precision: str, components: Mapping[str, str]
) -> Optional[CombinedManifest]:
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
        found = read_manifest(CombinedManifest, path)
        if (found.target, found.precision) != (target, precision):
            continue
        if dict(found.components) == dict(components) and (folder / found.file).is_file():
            return found
    return None


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


def _pointed(item: ComponentManifest, found: CombinedManifest) -> ComponentManifest:
    own = {net.file for net in item.compiled_nets}
    files = {name: record for name, record in item.files.items() if name not in own}
    return replace(
        item,
        nets=tuple(_moved(net, found.file) for net in item.nets),
        files={**files, **found.files},
        # Of the whole file, all of which is loaded with the first component.
        device_memory_bytes=found.device_memory_bytes,
    )


def _moved(net: Net, file: str) -> Net:
    variants = tuple(replace(one, file=file) for one in net.variants)
    return replace(net, file=file, variants=variants)
