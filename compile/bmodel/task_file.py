"""All nets of a task in one BModel: equal weights are stored once, and a board loads one file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compile.backend import shell
from compile.bmodel.canonical import make_canonical
from compile.bmodel.info import read_info
from configs.errors import InputError, ToolError
from configs.layout import Layout, Location
from configs.load import shown
from configs.precisions import Precision
from configs.schema import TASK_COMPONENTS, Component, SophonTarget, Task
from pipeline.atomic import artifact_lock, publish, staging
from pipeline.atomic import write_atomically as write
from pipeline.build import files_match
from pipeline.manifest import (
    CombinedManifest,
    ComponentManifest,
    file_record,
    key_of,
    manifest_text,
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
    target: SophonTarget
    precision: Precision

    @property
    def location(self) -> Location:
        """Beside the components' own files, named like them without a component."""
        component, own = next(iter(self.parts.items()))
        return Location(own.folder, own.stem.replace(f"{component}_", "", 1))

    @property
    def description(self) -> Path:
        """The file that says what went in; written last."""
        return self.location.file(SUFFIX)

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.task} {self.target.name} {self.precision} in one file"

    @property
    def parts(self) -> dict[Component, Location]:
        """The components' own artifacts."""
        place = self.layout.artifact
        every = TASK_COMPONENTS[self.task]
        return {one: place(self.task, one, self.target, self.precision) for one in every}

    @property
    def file(self) -> Path:
        """The BModel with all nets."""
        return self.location.file(".bmodel")

    @property
    def argv(self) -> command_lines.Argv:
        """The command that makes it, in a folder with all parts."""
        parts = sorted(part.file(".bmodel").name for part in self.parts.values())
        return command_lines.combine(parts, self.file.name)

    def script(self, results: Mapping[str, Path]) -> list[str]:
        """See ``FollowUp``."""
        own_files = [part.file(".bmodel") for part in self.parts.values()]
        parts = [results.get(path.name, path) for path in own_files]
        if missing := [p for p in parts if p.name not in results and not p.is_file()]:
            return [f"# once there is: {', '.join(map(shown, missing))}"]
        folder = self.layout.work / f"{self.location.stem}_combined"
        links = [os.path.relpath(part, folder) for part in parts]
        return [
            shell("rm", "-rf", folder),
            shell("mkdir", "-p", folder),
            shell("ln", "-s", "-t", folder, *links),
            shell_line(self.argv, folder),
        ]

    def build(self, tools: VendorTools, *, force: bool = False) -> int | None:
        """See ``FollowUp``; it waits for all components.

        Raises:
            ToolError: the tool failed, or nets were lost.
        """
        parts = self.parts.items()
        try:
            manifests = {str(c): read_manifest(ComponentManifest, p.manifest) for c, p in parts}
        except InputError:
            return None
        key_inputs = {
            "sources": source_digest("compile.bmodel.task_file"),
            "components": {name: manifest.key for name, manifest in manifests.items()},
            "command": self.argv,
            "tpu_mlir": command_lines.version(),
        }
        location, key = self.location, key_of(key_inputs)
        if not force and self._current(key):
            return None
        with artifact_lock(location.folder, f"{location.stem}.combined"):
            if not force and self._current(key):
                return None
            with staging(location.folder, f"{location.stem}.combined") as folder:
                memory = self._combine(tools, manifests, folder)
                record = file_record(folder / self.file.name)
                publish(folder, location.folder, [self.file.name], self.description)
            made = CombinedManifest(
                path=self.description,
                pipeline=self.layout.pipeline.name,
                task=self.task,
                target=self.target.name,
                precision=self.precision,
                key=key,
                key_inputs=key_inputs,
                files={self.file.name: record},
                commands=(self.argv,),
                device_memory_bytes=memory,
                tools={"tpu_mlir": command_lines.version()},
                components={name: manifest.key for name, manifest in manifests.items()},
            )
            write(self.description, manifest_text(made))
        return record.size_bytes

    def _current(self, key: str) -> bool:
        try:
            found = read_manifest(CombinedManifest, self.description)
        except InputError:
            return False
        return found.key == key and files_match(self.location.folder, found.files)

    def _combine(
        self, tools: VendorTools, manifests: Mapping[str, ComponentManifest], folder: Path
    ) -> int:
        """Makes the file in ``folder``; returns the memory that a device needs for it."""
        for part in (own.file(".bmodel") for own in self.parts.values()):
            (folder / part.name).symlink_to(part)
        file = self.file.name
        log = self.layout.logs / f"{self.location.stem}_combined.log"
        tools.run(self.argv, folder, log, leaves=[file])
        make_canonical(folder / file)
        info = read_info(tools, folder / file, log.with_name(f"{log.stem}_info.log"))
        for net in (net for manifest in manifests.values() for net in manifest.nets):
            name = net.artifact_net or net.name
            made = [
                {(t.name, t.shape, t.dtype) for t in (*stage.inputs, *stage.outputs)}
                for stage in info.nets.get(name, ())
            ]
            for shape in net.shapes:
                tensors = (*shape.inputs, *shape.outputs)
                if {(t.artifact_name, t.shape, t.dtype) for t in tensors} not in made:
                    raise ToolError(f"{file}: net {name} is not as in its own file")
        return info.device_memory_bytes
