"""Builds artifacts so that a manifest that exists means a complete artifact.

Key -> lock -> temporary folder -> fsync -> rename -> manifest last. Nothing is skipped because a
file exists: an artifact is reused only when its key *and* the digests of its files match.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel

from configs.errors import InputError, ToolError
from configs.layout import REPOSITORY_ROOT, Location
from pipeline.manifest import (
    Build,
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


@cache
def source_digest(package: str, without: tuple[str, ...] = ()) -> str:
    """Digest of a stage's own source files: the stage version that no one can forget to raise.

    ``without`` names subfolders that decide nothing about the stage's results.
    """
    digest = hashlib.sha256()
    folder = REPOSITORY_ROOT / package
    for path in sorted(folder.rglob("*.py")):
        if path.relative_to(folder).parts[0] in without:
            continue
        digest.update(str(path.relative_to(REPOSITORY_ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def tool_versions(*distributions: str) -> dict[str, str]:
    """Versions of installed distributions, without importing them.

    Raises:
        ToolError: a distribution is not installed.
    """
    versions = {}
    for name in distributions:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise ToolError(f"{name} is not installed here; run: make setup") from None
    return versions


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


def peak_memory_bytes() -> int:
    """Largest resident set so far of this process or of one of its finished children, in bytes."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(own, children) * 1024


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Writes a small text file so that readers see the old or the new one, never a part.

    Raises:
        ToolError: the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ToolError(
            f"{path}: cannot be written ({error.strerror}); free space or rights"
        ) from None
    _sync(path.parent)


def as_json(model: BaseModel) -> str:
    """The content of a report's file: indented, trailing newline."""
    return model.model_dump_json(indent=1) + "\n"


@contextmanager
def artifact_lock(folder: Path, stem: str) -> Iterator[None]:
    """Serialises builders of one artifact across processes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{stem}.lock")
    except OSError as error:
        raise ToolError(f"{folder}: cannot be written ({error.strerror})") from None
    with lock:
        yield


@contextmanager
def staging(folder: Path, stem: str) -> Iterator[Path]:
    """A temporary folder on the same file system, removed afterwards whatever happens.

    Leftovers of killed runs are removed first: the caller holds the artifact's lock.

    Raises:
        ToolError: the disk is full or the folder cannot be written.
    """
    prefix = f".{stem}.building-"
    for leftover in folder.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary: Path | None = None
    try:
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=prefix))
        yield temporary
    except OSError as error:
        where = error.filename or folder
        raise ToolError(
            f"{where}: {error.strerror or error}; check free space and rights of {folder}"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, folder: Path, names: list[str], manifest: Path) -> None:
    """Moves finished files into place; the old manifest goes first, so none describes new files."""
    for name in names:
        _sync(temporary / name)
    manifest.unlink(missing_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (temporary / name).replace(folder / name)
    _sync(folder)


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
    but ``key``, ``key_inputs``, ``files`` and ``build``).

    Raises:
        ToolError: a tool failed or the disk is full; any existing artifact is left untouched.
    """
    key = key_of(key_inputs)
    with artifact_lock(location.folder, location.stem):
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
                build=Build(
                    seconds=round(time.perf_counter() - started, 3),
                    peak_memory_bytes=peak_memory_bytes(),
                ),
                **fields,
            )
            publish(temporary, location.folder, names, location.manifest)
            write_atomically(location.manifest, manifest_text(manifest))
        return Built(manifest, reused=False)
