"""Which files of a task folder run on one target; and that a bundle has just those, consistent."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Union

from ..errors import ArtifactError
from ..files.manifests import (
    TASK_MANIFEST,
    CombinedManifest,
    ComponentManifest,
    TaskManifest,
    component_manifests,
    read_task_manifest,
)
from ..files.task_file import task_file
from .format import BundleError, Description


class Shipped(NamedTuple):
    """What runs: manifests, and the files that they describe."""

    task: TaskManifest
    components: List[ComponentManifest]
    #: all nets of a chip in one file; the components' own files are left out then
    combined: Optional[CombinedManifest]

    @property
    def manifests(self) -> List[Path]:
        """Paths of all manifests."""
        found = [self.task.path, *(item.path for item in self.components)]
        return found if self.combined is None else [*found, self.combined.path]

    @property
    def digests(self) -> Dict[Path, str]:
        """The described files, with the digests that the manifests name."""
        found = {self.task.folder / n: r.sha256 for n, r in self.task.runtime_files.items()}
        for item in self.components:
            own = {net.file for net in item.compiled_nets} if self.combined else set()
            for name, record in item.runtime_files.items():
                if name not in own:
                    found[item.folder / name] = record.sha256
        if self.combined is not None:
            for name, record in self.combined.files.items():
                found[self.combined.folder / name] = record.sha256
        return found


def shipped(task: TaskManifest, components: Sequence[ComponentManifest]) -> Shipped:
    """The files of one set of components: out of their combined file where there is one."""
    # One artifact may compute several components.
    items = list({item.path: item for item in components}.values())
    folders = {item.folder for item in items}
    combined = None
    if len(folders) == 1:
        keys = {item.component: item.key for item in items}
        combined = task_file(folders.pop(), items[0].target, items[0].precision, keys)
    return Shipped(task, items, combined)


def read_shipped(folder: Path, described: Description, digests: Dict[str, str]) -> Shipped:
    """Reads the manifests of a bundle and checks that they fit each other and the files.

    Args:
        folder: the bundle.
        described: what it says it is.
        digests: of every file, as found.

    Raises:
        BundleError: a manifest is damaged, of something else, or describes other files.
    """
    try:
        task = read_task_manifest(folder / described.task / TASK_MANIFEST)
        found = shipped(task, list(component_manifests(task.folder)))
    except ArtifactError as error:
        raise BundleError(_inside(folder, str(error))) from None
    computed = [name for item in found.components for name in (item.component, *item.includes)]
    if sorted(computed) != sorted(task.components):
        raise BundleError(
            f"{described.task}: has {', '.join(computed) or 'no component'}; "
            f"its manifest needs {', '.join(task.components)}, each once"
        )
    said = [(task.path, task.pipeline, task.task, described.target, described.precision)]
    parts: List[Union[ComponentManifest, CombinedManifest]] = list(found.components)
    parts += [] if found.combined is None else [found.combined]
    said += [(m.path, m.pipeline, m.task, m.target, m.precision) for m in parts]
    wanted = (described.pipeline, described.task, described.target, described.precision)
    for path, *names in said:
        if tuple(names) != wanted:
            place = path.relative_to(folder).as_posix()
            raise BundleError(f"{place}: is of {' '.join(names)}, not of {' '.join(wanted)}")
    for part in parts:
        place = part.path.relative_to(folder).as_posix()
        if part.key != _key(part.key_inputs):
            raise BundleError(f"{place}: key: not the digest of key_inputs")
        if isinstance(part, ComponentManifest) and part.checkpoint != task.checkpoint:
            raise BundleError(f"{place}: checkpoint: not the one of {TASK_MANIFEST}")
    files = {path.relative_to(folder).as_posix(): sha for path, sha in found.digests.items()}
    for name, digest in files.items():
        if digests.get(name) != digest:
            raise BundleError(f"{name}: missing, or not the file that its manifest describes")
    known = {*files, *(path.relative_to(folder).as_posix() for path in found.manifests)}
    for name in digests:
        if name.startswith(f"{described.task}/") and name not in known:
            raise BundleError(f"{name}: no manifest describes this file")
    return found


def _key(key_inputs: object) -> str:
    text = json.dumps(key_inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _inside(folder: Path, text: str) -> str:
    return text.replace(f"{folder}/", "").replace(str(folder), ".")
