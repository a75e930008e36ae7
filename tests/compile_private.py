"""A pipeline of one's own around already exported graphs, to break or rebuild at will."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compile.backend import Job, Source, read_source
from compile.pipeline import jobs
from pipeline.command import select
from pipeline.manifest import ComponentManifest, read_manifest

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class PrivatePipeline:
    """A copy of one exported task, and a pipeline file that points at it."""

    folder: Path
    task: str
    data: dict[str, Any]

    @property
    def config(self) -> Path:
        return self.folder / "pipeline.yaml"

    @property
    def root(self) -> Path:
        return self.folder / "reference"

    def write(self) -> None:
        self.config.write_text(yaml.safe_dump(self.data))

    def shapes(self) -> dict[str, int]:
        shapes: dict[str, int] = self.data["tasks"][self.task]["shapes"]
        return shapes

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "compile", "--config", str(self.config), *arguments]

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            # Wide enough that no message is wrapped.
            env={**os.environ, "COLUMNS": "1000"},
            **options,
        )

    def manifests(self) -> dict[str, ComponentManifest]:
        """Manifests of all built artifacts, by path below the task folder."""
        return {
            str(path.relative_to(self.root / self.task)): read_manifest(ComponentManifest, path)
            for path in sorted((self.root / self.task).rglob("*.manifest.json"))
            if path.parent.name != "onnx"
        }

    def job(self, component: str, target: str, precision: str | None = None) -> Job:
        selection = select(self.config, component=component, target=target, precision=precision)
        return jobs(selection)[0]

    def source(self, component: str) -> Source:
        job = self.job(component, "openvino")
        return read_source(job.layout, job.task, job.component)


def private_pipeline(exported: Path, folder: Path, task: str, *components: str) -> PrivatePipeline:
    """Copies exported components of a task into ``folder`` and writes a pipeline file for them."""
    onnx = folder / "reference" / task / "onnx"
    onnx.mkdir(parents=True)
    shutil.copy(exported / task / "manifest.json", onnx.parent)
    for component in components:
        for file in (exported / task / "onnx").glob(f"{component}.*"):
            shutil.copy(file, onnx)
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data["artifacts"] = str(folder)
    data["tasks"] = {task: data["tasks"][task]}
    # One artifact per component and target; tests of other precisions list them.
    data["targets"]["openvino"] = {"precisions": ["f16"]}
    pipeline = PrivatePipeline(folder, task, data)
    pipeline.write()
    return pipeline
