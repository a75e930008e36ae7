"""All nets of a task in one BModel: equal weights are stored once, and a board loads one file."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compile.bmodel.info import parse_info
from configs.errors import InputError, ToolError
from configs.layout import Layout, Location
from configs.schema import TASK_COMPONENTS, Precision, TargetConfig, Task
from pipeline.atomic import artifact_lock, publish, staging
from pipeline.atomic import write_atomically as write
from pipeline.build import files_match
from pipeline.manifest import (
    SCHEMA_VERSION,
    ComponentManifest,
    FileRecord,
    file_record,
    key_of,
    read_manifest,
)
from pipeline.sources import source_digest
from pipeline.tpu_tools import command_lines
from pipeline.tpu_tools.process import VendorTools, shell_line

SUFFIX = ".combined.json"


@dataclass(frozen=True)
class TaskFile:
    """Which task on which chip."""

    layout: Layout
    task: Task
    target: TargetConfig
    precision: Precision

    @property
    def location(self) -> Location:
        """Beside the components' own files, named like them without a component."""
        task, target, precision = self.task, self.target, self.precision
        own = self.layout.artifact(task, TASK_COMPONENTS[task][0], target, precision)
        return Location(own.folder, own.stem.replace(f"{TASK_COMPONENTS[task][0]}_", "", 1))

    @property
    def description(self) -> Path:
        """The file that says what went in; written last."""
        return self.location.file(SUFFIX)

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.task} {self.target.name} {self.precision} in one file"

    def components(self) -> dict[str, ComponentManifest] | None:
        """Manifests of all components, or None while one is not built."""
        found = {}
        for component in TASK_COMPONENTS[self.task]:
            own = self.layout.artifact(self.task, component, self.target, self.precision)
            try:
                manifest = read_manifest(ComponentManifest, own.manifest)
            except InputError:
                return None
            found[str(component)] = manifest
        return found

    def plan(self) -> str:
        """The command that combining would run."""
        return shell_line(self._argv(("COMPONENTS",)), self.location.folder)

    def build(self, tools: VendorTools, *, force: bool = False) -> bool:
        """Combines the components' files; returns whether there was anything to do.

        Raises:
            ToolError: the tool failed, or nets were lost.
        """
        manifests = self.components()
        if manifests is None or not self.target.combine_nets:
            return False
        key_inputs = {
            "sources": source_digest("compile.bmodel.task_file"),
            "components": {name: manifest.key for name, manifest in manifests.items()},
            "tpu_mlir": command_lines.version(),
        }
        location, key = self.location, key_of(key_inputs)
        with artifact_lock(location.folder, f"{location.stem}.combined"):
            if not force and self._current(key):
                return False
            started = time.perf_counter()
            with staging(location.folder, f"{location.stem}.combined") as folder:
                fields = self._combine(tools, manifests, folder)
                file = location.file(".bmodel").name
                record = file_record(folder / file)
                publish(folder, location.folder, [file], self.description)
            data = {
                **{"schema_version": SCHEMA_VERSION, "kind": "combined"},
                **{"pipeline": self.layout.pipeline.name, "task": self.task},
                **{"target": self.target.name, "precision": self.precision},
                **{"key": key, "key_inputs": key_inputs, "files": {file: record.model_dump()}},
                **fields,
                "components": key_inputs["components"],
                "build": {"seconds": round(time.perf_counter() - started, 3)},
            }
            write(self.description, json.dumps(data, indent=1) + "\n")
        return True

    def _current(self, key: str) -> bool:
        try:
            data: dict[str, Any] = json.loads(self.description.read_text())
            records = {name: FileRecord(**record) for name, record in data["files"].items()}
            return bool(data["key"] == key) and files_match(self.location.folder, records)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _combine(
        self, tools: VendorTools, manifests: Mapping[str, ComponentManifest], folder: Path
    ) -> dict[str, Any]:
        nets = [net for manifest in manifests.values() for net in manifest.nets]
        parts = sorted({stage.file for net in nets for stage in net.stages})
        for part in parts:
            (folder / part).symlink_to(self.location.folder / part)
        argv = self._argv(parts)
        log = self.layout.logs / f"{self.location.stem}_combined.log"
        log.unlink(missing_ok=True)
        tools.run(argv, folder, log)
        for part in parts:
            (folder / part).unlink()
        file = self.location.file(".bmodel").name
        if not (folder / file).is_file():
            raise ToolError(f"{argv[0]} ended with exit code 0 but left no {file}; log: {log}")
        log.unlink(missing_ok=True)
        tools.run(command_lines.info(file), folder, log)
        info = parse_info(log.read_text(encoding="utf-8", errors="replace"), file)
        for net in nets:
            name = net.artifact_net or net.name
            made = [
                {(t.name, t.shape, t.dtype) for t in (*stage.inputs, *stage.outputs)}
                for stage in info.nets.get(name, ())
            ]
            for stage in net.stages:
                tensors = (*stage.inputs, *stage.outputs)
                if {(t.artifact_name, t.shape, t.dtype) for t in tensors} not in made:
                    raise ToolError(f"{file}: net {name} is not as in its own file")
        return {
            "commands": [list(argv)],
            "device_memory_bytes": info.device_memory_bytes,
            "tools": {"tpu_mlir": command_lines.version()},
        }

    def _argv(self, parts: Sequence[str]) -> command_lines.Argv:
        return command_lines.combine(parts, self.location.file(".bmodel").name)
