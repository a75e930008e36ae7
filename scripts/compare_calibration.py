"""Compares our search for integers with the vendor's own calibration, SmoothQuant and searches.

One component at a time is calibrated in each way, compiled, and put into the set of its task: time,
operations left in float, error of its outputs on the simulator, and the task's answers. The
pipeline file's int8 set must be built for the task (make bmodel).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from compile.backend import Job, read_source
from compile.bmodel.backend import SophonBackend
from compile.bmodel.integers.quantizer import (
    Calibrated,
    NetToQuantize,
    calibrate,
    calibration_inputs,
)
from compile.bmodel.prepare import Prepared
from compile.bmodel.steps import Graph, Steps
from configs.errors import BlipEdgeError, ConfigError
from configs.layout import Layout, Location
from configs.schema import Component, Task
from pipeline.build import build_component
from pipeline.command import exit_codes, select
from pipeline.console import messages, output
from pipeline.manifest import ComponentManifest
from pipeline.tpu_tools.command_lines import transformed
from pipeline.tpu_tools.process import MemoryBudget, VendorTools
from runtime.files.manifests import read_component_manifest
from verify.answers.quality import match_quality, text_quality
from verify.answers.whole_answers import generated_tokens, match_scores
from verify.artifacts import TargetArtifacts, find_artifacts
from verify.opened import TaskBench
from verify.parity.components import onnxruntime_vs_target
from verify.results import Subject

OURS = "our search"
#: What run_calibration.py is asked for.
VENDOR: dict[str, tuple[str, ...]] = {
    "KL": ("--cali_method", "kl"),
    "squared error": ("--cali_method", "mse"),
    "percentile": ("--cali_method", "percentile9999"),
    "SmoothQuant and squared error": ("--sq", "--cali_method", "mse"),
    "search_threshold": ("--search", "search_threshold"),
    "search_qtable": ("--search", "search_qtable", "--max_float_layers", "20"),
}
_MEMORY_BYTES = 4_000_000_000


@dataclass
class Way:
    """One way of calibrating: None for our own, else options of the vendor's tool."""

    options: tuple[str, ...] | None
    seconds: float = 0.0


class _Steps(Steps):
    """Leaves the work folder's MLIR alone: SmoothQuant changes its copy."""

    def __init__(self, folder: Path) -> None:
        super().__init__(MemoryBudget(_MEMORY_BYTES), VendorTools())
        self._folder = folder

    def transform(self, graph: Graph, net: str, weights_bytes: int) -> Path:
        """A copy of the net's top-level MLIR."""
        top = super().transform(graph, net, weights_bytes)
        return Path(shutil.copytree(top, self._folder / "top" / net))


class _Backend(SophonBackend):
    """Builds with thresholds and table from elsewhere."""

    def __init__(self, way: Way, folder: Path) -> None:
        super().__init__(MemoryBudget(_MEMORY_BYTES), VendorTools())
        self._steps = _Steps(folder)
        self._way = way
        self._folder = folder

    def _calibrated(
        self, job: Job, net: str, prepared_folder: Path, prepared: Prepared, top: Path
    ) -> Calibrated:
        name = job.component if net == "main" else f"{job.component}_{net}"
        one = NetToQuantize(job, net, name, prepared_folder, prepared, top)
        started = time.perf_counter()
        try:
            if self._way.options is None:
                return calibrate(one)
            return _vendor(one, self._way.options, self._folder / net)
        finally:
            self._way.seconds += time.perf_counter() - started


def _vendor(one: NetToQuantize, options: tuple[str, ...], folder: Path) -> Calibrated:
    data = folder / "inputs"
    data.mkdir(parents=True)
    for number, arrays in enumerate(calibration_inputs(one)):
        np.savez(data / f"{number:04d}.npz", **arrays)  # type: ignore[arg-type]
    for file in transformed(one.artifact_net):
        shutil.copy(one.top / file, folder / file)
    samples = str(len(list(data.iterdir())))
    searched = "--search" in options
    table = ("--quantize_table", "found_table") if searched else ()
    VendorTools().run(
        (
            "run_calibration.py",
            f"{one.artifact_net}.mlir",
            *("--dataset", "inputs", "--input_num", samples, "--inference_num", "8"),
            *("--chip", one.job.target.name, "-o", "thresholds", *options, *table),
        ),
        folder,
        folder / "run_calibration.log",
    )
    if "--sq" in options:
        # It moves scales from activations into weights: the net itself is another one afterwards.
        for file in transformed(one.artifact_net):
            shutil.copy(folder / file, one.top / file)
    found = [folder / "found_table", folder / "shape_pattern_qtable"]
    lines = [p.read_text(encoding="utf-8") for p in found if p.is_file()][:1]
    text = lines[0] if lines else ""
    return Calibrated((folder / "thresholds").read_text(), text, text, "vendor", None)


def _built(job: Job, way: Way, folder: Path) -> ComponentManifest:
    source = read_source(job.layout, job.task, job.component)
    location = Location(folder / "artifact", job.location.stem)
    backend = _Backend(way, folder)
    keys = {"way": list(way.options or ()), "folder": str(folder)}
    return build_component(location, keys, lambda at: backend.build(job, source, at)).manifest


def _answers(bench: TaskBench, artifacts: TargetArtifacts, scenes: int) -> str:
    cases, expected = bench.cases(scenes), bench.expected(scenes)
    task = bench.runtime_task(artifacts)
    if not task.generates:
        scores = [match.probability for match in match_scores(task, cases)]
        wanted = [answer.probability or 0.0 for answer in expected]
        same = sum((a > 0.5) == (b > 0.5) for a, b in zip(scores, wanted, strict=True))
        quality = match_quality(cases, wanted, scores, None).metrics
    else:
        tokens = generated_tokens(task, cases, bench.new_tokens())
        same = sum(a.tokens == t for a, t in zip(expected, tokens, strict=True))
        texts = [
            [task.tokenizer.decode(ids[a.prompt :]) for a, ids in zip(expected, found, strict=True)]
            for found in ([a.tokens for a in expected], tokens)
        ]
        quality = text_quality(cases, texts[0], texts[1], None).metrics
    name, first = next(iter(quality.items()))
    drop = 100.0 * (first["checkpoint"] - first["value"])
    return f"{same} / {scenes} | {drop + 0.0:.1f} ({name})"


def _named(ways: str, known: list[str]) -> list[str]:
    wanted = [name.strip() for name in ways.split(",") if name.strip()] or known
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--ways {name}: unknown; choose from: {', '.join(known)}")
    return wanted


@exit_codes
def main(
    config: Annotated[Path, typer.Option(help="pipeline file")],
    task: Annotated[str, typer.Option()] = "vqa",
    component: Annotated[str, typer.Option()] = "vision_encoder",
    target: Annotated[str, typer.Option()] = "bm1684x",
    scenes: Annotated[int, typer.Option(help="answers to compare")] = 50,
    ways: Annotated[str, typer.Option(help="comma-separated; all where absent")] = "",
) -> None:
    """Print the comparison as Markdown."""
    selection = select(config, task=task, target=target, precision="int8")
    (artifacts_of_task,) = find_artifacts(selection)
    (artifacts,) = artifacts_of_task.targets
    chip, precision = selection.targets[0]
    named_task: Task = selection.tasks[0]
    named: Component = component  # type: ignore[assignment]
    job = Job(Layout(selection.pipeline), named_task, named, chip, precision)
    output.print("| way | s | in float | integer share | error | answers equal | drop, points |")
    output.print("|---|---|---|---|---|---|---|")
    every = {OURS: None, **VENDOR}
    for name in _named(ways, list(every)):
        options = every[name]
        way = Way(options)
        with tempfile.TemporaryDirectory(dir=job.layout.work) as temporary:
            try:
                made = _built(job, way, Path(temporary))
            except BlipEdgeError as error:
                reason = str(error).splitlines()[0]
                output.print(f"| {name} | {way.seconds:.0f} | {reason} | | | | |", soft_wrap=True)
                continue
            path = Path(temporary) / "artifact" / f"{job.location.stem}.manifest.json"
            replaced = replace(
                artifacts, components={**artifacts.components, named: read_component_manifest(path)}
            )
            bench = TaskBench(artifacts_of_task, selection.pipeline)
            subject = Subject(
                "onnxruntime_vs_target", named_task, named, chip.name, precision, "component"
            )
            check = onnxruntime_vs_target(
                subject,
                replaced.components[named],
                bench.session(replaced, named),
                bench.samples(replaced, named),
                "int8",
                messages.print,
            )
            answers = _answers(bench, replaced, scenes)
            bench.release(replaced)
            bench.close()
        nets = made.quantization.nets.values() if made.quantization else ()
        floats = sum(net.float_operations for net in nets)
        share = min(net.integer_share for net in nets)
        output.print(
            f"| {name} | {way.seconds:.0f} | {floats} | {100 * share:.0f} % | "
            f"{check.metrics['relative_error']:.1e} | {answers} |",
            soft_wrap=True,
        )


if __name__ == "__main__":
    typer.run(main)
