"""Builds artifacts so that a manifest that exists means a complete artifact.

Key -> lock -> temporary folder -> fsync -> rename -> manifest last. Nothing is skipped because a
file exists: an artifact is reused only when its key *and* the digests of its files match.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from configs.errors import InputError, ToolError
from configs.layout import Location
from pipeline.atomic import artifact_lock, publish, staging, write_atomically
from pipeline.manifest import (
    ComponentManifest,
    FileRecord,
    file_record,
    file_sha256,
    key_of,
    manifest_text,
    read_manifest,
)

#: What a stage returns from building into a temporary folder: manifest fields it alone knows.
Produce = Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class Built:
    """Outcome of :func:`build_component`."""

    manifest: ComponentManifest
    #: True when an existing artifact was found unchanged and nothing was done
    reused: bool
    #: what building it took; not in the manifest, which is the same wherever it is built
    seconds: float = 0.0


def tool_versions(*distributions: str) -> dict[str, str]:
    """Versions of installed distributions, without importing them.

    Raises:
        ToolError: a distribution is not installed.
    """
    return {name: _version(name) for name in distributions}


@cache
def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise ToolError(f"{distribution} is not installed here; run: make setup") from None


def files_match(folder: Path, files: Mapping[str, FileRecord]) -> bool:
    """Whether every recorded file is there with its recorded size and digest."""
    try:
        sizes = all(
            (folder / name).stat().st_size == record.size_bytes for name, record in files.items()
        )
        return sizes and all(
            file_sha256(folder / name) == record.sha256 for name, record in files.items()
        )
    except (OSError, ValueError):
        return False


def current(location: Location, key: str) -> ComponentManifest | None:
    """The existing artifact's manifest when it can be reused, else None."""
    try:
        manifest = read_manifest(ComponentManifest, location.manifest)
    except InputError:
        return None
    if manifest.key == key and files_match(location.folder, manifest.files):
        return manifest
    return None


def as_json(model: BaseModel) -> str:
    """The content of a report's file: indented, trailing newline."""
    return model.model_dump_json(indent=1) + "\n"


def discard(location: Location) -> None:
    """Removes an artifact that another one replaces; its manifest goes first.

    What its manifest lists under other names than the artifact's own stays.
    """
    try:
        manifest = read_manifest(ComponentManifest, location.manifest)
    except InputError:
        return
    location.manifest.unlink(missing_ok=True)
    stems = {location.stem, *(f"{location.stem}_{net.name}" for net in manifest.nets)}
    for name in manifest.files:
        if Path(name).name == name and name.partition(".")[0] in stems:
            (location.folder / name).unlink(missing_ok=True)


def build_component(
    location: Location,
    key_inputs: dict[str, Any],
    produce: Produce,
    *,
    force: bool = False,
) -> Built:
    """Builds one artifact, or reuses it when key and digests match.

    ``produce`` gets an empty folder, writes the artifact's files there (flat, all names
    beginning with the location's stem) and returns the remaining fields of the manifest (all
    but ``key``, ``key_inputs`` and ``files``).

    Raises:
        ToolError: a tool failed or the disk is full; any existing artifact is left untouched.
    """
    key = key_of(key_inputs)
    if not force and (existing := current(location, key)):
        return Built(existing, reused=True)
    with artifact_lock(location.folder, location.stem):
        # Another run may have built it meanwhile.
        if not force and (existing := current(location, key)):
            return Built(existing, reused=True)
        with staging(location.folder, location.stem) as temporary:
            started = time.perf_counter()
            fields = produce(temporary)
            names = sorted(
                str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file()
            )
            manifest = ComponentManifest(
                path=location.manifest,
                key=key,
                key_inputs=key_inputs,
                files={name: file_record(temporary / name) for name in names},
                **fields,
            )
            publish(temporary, location.folder, names, location.manifest)
            write_atomically(location.manifest, manifest_text(manifest))
        return Built(manifest, reused=False, seconds=time.perf_counter() - started)
