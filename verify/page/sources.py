"""Reads what the report is about: manifests, verdict, and what other commands left beside them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.layout import MANIFEST_SUFFIX, Layout
from configs.load import shown
from configs.schema import PipelineConfig
from pipeline.json_file import WRONG, read_object
from pipeline.manifest import ComponentManifest, TaskManifest, key_of, read_manifest
from verify.verdict import read_verdict
from verify.verdicts.merging import runs_of

Json = dict[str, Any]

#: Results of other commands, by kind: where they lie below the root.
RESULTS = {
    "evaluation": "evaluation/*.json",
    "bisect": "bisect/*.json",
    "benchmark": "benchmark.json",
}
#: Version of their format, where it is not the first.
VERSIONS = {"benchmark": 2}


@dataclass
class Sources:
    """Everything on the disk that the page shows."""

    pipeline: PipelineConfig
    config: Path
    root: Path
    verdict: Json
    #: when its last run ended
    verified_at: datetime
    tasks: list[TaskManifest] = field(default_factory=list)
    #: manifest path as verify.json has it -> manifest
    components: dict[str, ComponentManifest] = field(default_factory=dict)
    #: results of other commands: kind -> (path, content)
    results: dict[str, list[tuple[Path, Json]]] = field(default_factory=dict)
    #: files that could not be read, one line each
    unreadable: list[str] = field(default_factory=list)
    #: digest of everything read
    digest: str = ""

    @property
    def runs(self) -> list[Json]:
        """The runs that made the verdict: commit, time, host, tools."""
        return runs_of(self.verdict)

    @property
    def checks(self) -> list[Json]:
        """The verdict's checks."""
        return list(self.verdict.get("checks", []))


def read_sources(pipeline: PipelineConfig, config: Path) -> Sources:
    """Reads a pipeline's artifacts folder.

    Raises:
        InputError: nothing was verified yet, or verify.json is damaged.
    """
    layout = Layout(pipeline)
    digests: dict[str, str] = {}
    verdict = _verdict(layout.verdict, config, digests)
    sources = Sources(pipeline, config, layout.root, verdict, _last_run(layout.verdict, verdict))
    for task in pipeline.tasks:
        folder = layout.task(task)
        try:
            if (path := layout.task_manifest(task)).is_file():
                sources.tasks.append(read_manifest(TaskManifest, path))
                digests[shown(path)] = _digest(path)
        except InputError as error:
            sources.unreadable.append(str(error))
        for path in sorted(folder.glob(f"*/**/*{MANIFEST_SUFFIX}")):
            try:
                sources.components[shown(path)] = read_manifest(ComponentManifest, path)
                digests[shown(path)] = _digest(path)
            except InputError as error:
                sources.unreadable.append(str(error))
    for kind, pattern in RESULTS.items():
        for path in sorted(layout.root.glob(pattern)):
            _read_result(sources, kind, path, digests)
    sources.digest = key_of(
        {
            "files": digests,
            "unreadable": sources.unreadable,
            "pipeline": pipeline.model_dump(mode="json"),
            "config": str(config),
            "verified_at": sources.verified_at.isoformat(),
        }
    )
    return sources


def _verdict(path: Path, config: Path, digests: dict[str, str]) -> Json:
    try:
        verdict = read_verdict(path)
    except FileNotFoundError:
        raise InputError(
            f"{shown(path)}: nothing was verified yet, so there is nothing to report; "
            f"run: make verify CONFIG={config}"
        ) from None
    except WRONG as error:
        raise InputError(
            f"{shown(path)}: damaged or of another version ({error}); run: "
            f"make verify CONFIG={config}"
        ) from None
    digests[shown(path)] = _digest(path)
    return verdict


def _last_run(path: Path, verdict: Json) -> datetime:
    times = [str(run["time"]) for run in runs_of(verdict) if "time" in run]
    if times:
        return datetime.fromisoformat(max(times)).astimezone(UTC)
    return datetime.fromtimestamp(int(path.stat().st_mtime), UTC)


def _read_result(sources: Sources, kind: str, path: Path, digests: dict[str, str]) -> None:
    try:
        data = read_object(path)
        if data.get("kind", kind) != kind:
            raise ValueError(f"not a result of kind {kind!r}")
        version = VERSIONS.get(kind, 1)
        if data.get("schema_version") != version:
            raise ValueError(f"schema_version {data.get('schema_version')} is not {version}")
    except (OSError, ValueError) as error:
        sources.unreadable.append(f"{shown(path)}: {error}")
        return
    sources.results.setdefault(kind, []).append((path, data))
    digests[shown(path)] = _digest(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
