"""A task's nets in one file against the files of their own that were verified.

Boards load the combined file, while verification looks at the components' own: nets that went stale
in it would be seen by users only. The vendor's tool copies a net's instructions and weights as they
are, so every block of a component's file must be in the combined one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from configs.errors import InputError
from configs.load import shown
from configs.schema import Component, Task
from pipeline.build import files_match
from runtime.files.manifests import CombinedManifest, ComponentManifest
from runtime.files.task_file import task_file
from verify.artifacts import TargetArtifacts, runtime_failures
from verify.results import Check, Subject

#: A BModel: magic number, size of this header, size of the description, size of all that follows.
_HEADER_BYTES, _SIZE_BYTES = 64, 4
#: What a board maps and so what the vendor's tool aligns.
BLOCK_BYTES = 4096


def combined_file(artifacts: TargetArtifacts, task: Task) -> CombinedManifest | None:
    """The file that users of a chip's artifacts get, if there is a current one.

    Raises:
        InputError: the file is not the one that was made.
        ToolError: its description is damaged.
    """
    parts = list(artifacts.components.values())
    keys = {str(part.component): part.key for part in parts}
    with runtime_failures():
        found = task_file(parts[0].folder, artifacts.name, artifacts.precision, keys)
    if found is not None and not files_match(found.path.parent, found.files):
        rebuild = artifacts.rebuild(task)
        raise InputError(
            f"{shown(found.path.parent / found.file)}: is not the file that "
            f"{found.path.name} describes; run: {rebuild} FORCE=1"
        )
    return found


def wrong_parts(
    combined: CombinedManifest, parts: Mapping[Component, ComponentManifest]
) -> Iterator[tuple[Component, str]]:
    """Components whose own files are not in the combined one, and what is missing."""
    held = set(_blocks((combined.path.parent / combined.file).read_bytes()))
    for name, manifest in parts.items():
        for file in dict.fromkeys(net.file for net in manifest.compiled_nets):
            own = list(_blocks((manifest.folder / file).read_bytes()))
            missing = sum(block not in held for block in own)
            if missing or not own:
                yield name, f"{missing} of {len(own)} blocks of {file} are not in {combined.file}"


def _blocks(data: bytes) -> Iterator[bytes]:
    """Everything behind the description, in pieces; the last one may be cut off by padding."""
    described = int.from_bytes(data[2 * _SIZE_BYTES : 3 * _SIZE_BYTES], "little")
    start = _HEADER_BYTES + described
    for place in range(start, len(data) - BLOCK_BYTES + 1, BLOCK_BYTES):
        yield data[place : place + BLOCK_BYTES]


def combined_check(subject: Subject, artifacts: TargetArtifacts) -> Check:
    """The verdict over a chip's combined file."""
    combined = combined_file(artifacts, subject.task)
    parts = artifacts.components
    wrong = [] if combined is None else list(wrong_parts(combined, parts))
    problems = tuple(f"{name}: {what}; build it again" for name, what in wrong)
    metrics = {"file": combined.file if combined else None, "components": sorted(parts)}
    tolerance = {"source": "the components' own files: every block of them"}
    return Check(subject, len(parts), metrics, tolerance, problems)
