"""ONNX -> SOPHON BModel, through TPU-MLIR (docs/adding-a-target.md)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.backend import Job, Source, manifest_fields
from compile.bmodel.info import BModelInfo, match_inputs, match_outputs
from compile.bmodel.rewrites import check_names
from compile.bmodel.steps import (
    INTEGER,
    TABLE,
    THRESHOLDS,
    Deployed,
    Graph,
    Steps,
    artifact_net,
    combine_argv,
    deploy_argv,
    deploy_folder,
    is_combined,
    rewrites_of,
)
from compile.calibration.given import GivenFiles
from configs.errors import ToolError
from configs.schema import Component, Task
from pipeline.build import tool_versions
from pipeline.manifest import Estimate, HostLookup, Net, NetVariant, Quantization, QuantizedNet
from pipeline.net_shapes import net_names
from pipeline.sources import source_digest
from pipeline.tpu_tools import command_lines
from pipeline.tpu_tools.process import MemoryBudget, VendorTools, shell_line

if TYPE_CHECKING:
    from compile.bmodel.integers.quantizer import Calibrated
    from compile.bmodel.prepare import Prepared, PreparedNet


#: Largest value that a table may hold to be kept in half precision.
_LARGEST_HALF = 65504.0


def _needed(graph: Graph) -> Graph:
    """The graph with those rewrites alone that found something, where it was prepared before."""
    from compile.bmodel.prepare import is_prepared, read_prepared

    if graph.source is None or not is_prepared(graph.prepared):
        return graph
    return replace(graph, rewrites=read_prepared(graph.prepared).needed)


class SophonBackend:
    """Builds BModels; steps that several chips share are kept in the pipeline's work folder."""

    def __init__(self, budget: MemoryBudget, tools: VendorTools) -> None:
        self._steps = Steps(budget, tools)
        self._given = GivenFiles()

    def holder(self, task: Task, component: Component) -> Component:  # noqa: ARG002 - interface
        """See ``Backend``; every component is a net of its own."""
        return component

    def check(self, job: Job, source: Source | None, *, keep: bool) -> None:
        """Quantize tables of a user's own, against nets that were made before; calibration data."""
        self._given.check_tables(job, INTEGER)
        if job.built_as != INTEGER:
            return
        from compile.bmodel.integers.quantizer import check_table

        graph = _needed(Graph(job, source, rewrites_of(job)))
        for net in net_names(job.task, job.component):
            check_table(job, artifact_net(job, net), graph.top(net))
        self._given.check_data(job, job.task, keep=keep)

    def key_inputs(self, job: Job, source: Source) -> dict[str, Any]:
        """Graph, shapes, rewrites, chip, precision, tools and this stage's own source."""
        target = job.target
        named = (*target.rewrites, *target.integer_rewrites)
        check_names(named, f"configs/targets/{target.name}.yaml")
        graph = Graph(job, source, rewrites_of(job))
        calibration = {}
        if job.built_as == INTEGER:
            from compile.bmodel.integers.quantizer import calibration_key

            nets = [artifact_net(job, net) for net in net_names(job.task, job.component)]
            calibration = {"quantization": calibration_key(job, nets)}
        return {
            **graph.key,
            **calibration,
            "sources": _sources(job, graph.rewrites),
            "settings": job.settings(source.task.dimensions.image_tokens),
            "tools": self._tools(),
        }

    def plan(self, job: Job, source: Source | None) -> list[str]:
        """Vendor commands in the order of a build; ``DIGEST`` stands for one not known yet.

        Which of a chip's rewrites find something to change is known once its graphs were prepared;
        before that, chips of other rewrites are shown with intermediates of their own.
        """
        graph = _needed(Graph(job, source, rewrites_of(job)))
        lines = []
        for net in (shape.name for shape in graph.nets):
            lines.append(shell_line(graph.transform_argv(net), graph.top(net)))
            lines.append(shell_line(deploy_argv(job, net), deploy_folder(job) / net))
        if is_combined(job):
            lines.append(shell_line(combine_argv(job), deploy_folder(job)))
        return lines

    def build(self, job: Job, source: Source, folder: Path) -> dict[str, Any]:
        """Prepare, transform, deploy, combine, read back."""
        graph = Graph(job, source, rewrites_of(job))
        prepared_folder, prepared = self._steps.prepare(graph)
        rewrites = prepared.rewrites
        if prepared.needed != graph.rewrites:
            # Some found nothing to change in this graph: share the MLIR with chips without them.
            graph, prepared_folder = self._steps.without_idle_rewrites(graph, prepared)
        shutil.rmtree(deploy_folder(job), ignore_errors=True)
        commands: list[command_lines.Argv] = []
        deployed = []
        quantized: dict[str, QuantizedNet] = {}
        calibrations: dict[str, Calibrated] = {}
        try:
            for net in prepared.nets:
                top = self._steps.transform(graph, net.name, prepared.weights_bytes)
                files = None
                if job.built_as == INTEGER:
                    # Variants come after their net and take its ranges: the same values occur.
                    if net.net == net.name:
                        calibrations[net.net] = self._calibrated(
                            job, net.name, prepared_folder, prepared, top
                        )
                    calibrated = calibrations[net.net]
                    files = {THRESHOLDS: calibrated.thresholds, TABLE: calibrated.table}
                made = self._steps.deploy(
                    job, net.name, top, prepared.weights_bytes, net.attentions, files
                )
                deployed.append(made)
                if files is not None and net.net == net.name:
                    quantized[net.name] = self._record(job, net.name, calibrated, folder)
                commands += [graph.transform_argv(net.name), deploy_argv(job, net.name)]
            places = self._steps.assemble(job, deployed, folder)
        finally:
            shutil.rmtree(deploy_folder(job), ignore_errors=True)
        if is_combined(job):
            commands.append(combine_argv(job))
        infos = {
            file: self._steps.info(job, folder / file) for file in sorted(set(places.values()))
        }
        lookups = self._tables(job, prepared, prepared_folder, folder)
        return {
            **manifest_fields(job, source),
            "nets": self._nets(job, prepared, deployed, places, infos, lookups),
            "rewrites": rewrites,
            "commands": tuple(commands),
            "tools": self._tools(),
            "device_memory_bytes": sum(info.device_memory_bytes for info in infos.values()),
            "quantization": self._quantization(job, quantized) if quantized else None,
        }

    def _calibrated(
        self, job: Job, net: str, prepared_folder: Path, prepared: Prepared, top: Path
    ) -> Calibrated:
        """Thresholds and quantize table of one net."""
        from compile.bmodel.integers.quantizer import NetToQuantize, calibrate

        one = NetToQuantize(job, net, artifact_net(job, net), prepared_folder, prepared, top)
        with self._steps.measuring(prepared.weights_bytes):
            return calibrate(one)

    def _record(self, job: Job, net: str, calibrated: Calibrated, folder: Path) -> QuantizedNet:
        """Puts the net's quantize table beside the BModel, and counts what became integers."""
        from compile.bmodel.integers.quantizer import quantized_net
        from compile.bmodel.integers.tables import SUFFIX

        name = artifact_net(job, net)
        table = f"{job.location.stem}.{net}{SUFFIX}"
        (folder / table).write_text(calibrated.readable)
        thresholds = f"{job.location.stem}.{net}.thresholds"
        (folder / thresholds).write_text(calibrated.thresholds)
        return quantized_net(deploy_folder(job) / net, name, calibrated, table, thresholds)

    def _quantization(self, job: Job, nets: dict[str, QuantizedNet]) -> Quantization:
        from compile.bmodel.integers.quantizer import METHOD
        from compile.calibration.examples import example_count, examples_digest

        calibration = job.layout.pipeline.calibration
        return Quantization(
            source=calibration.source,
            samples=example_count(calibration, job.task),
            seed=calibration.seed,
            digest=examples_digest(calibration, job.task),
            method=METHOD,
            nets=nets,
        )

    def memory_bytes(self, source: Source) -> int:  # noqa: ARG002 - interface
        """Nothing of its own: each step holds its share of the budget."""
        return 0

    def _tools(self) -> dict[str, str]:
        return {"tpu_mlir": command_lines.version(), **tool_versions("onnx", "onnxruntime")}

    def _tables(
        self, job: Job, prepared: Prepared, prepared_folder: Path, folder: Path
    ) -> tuple[HostLookup, ...]:
        """Puts the tables of host lookups beside the BModel, in half precision but for f32."""
        # Here, not above: an unchanged run must not wait for numpy to load.
        import numpy as np

        copied = []
        for lookup in prepared.lookups:
            table = f"{job.location.stem}.{lookup.table}"
            rows = np.load(prepared_folder / lookup.table)
            if job.built_as != "f32" and np.max(np.abs(rows)) < _LARGEST_HALF:
                rows = rows.astype(np.float16)
            np.save(folder / table, rows)
            copied.append(lookup.model_copy(update={"table": table}))
        return tuple(copied)

    def _nets(
        self,
        job: Job,
        prepared: Prepared,
        deployed: Sequence[Deployed],
        places: Mapping[str, str],
        infos: Mapping[str, BModelInfo],
        lookups: tuple[HostLookup, ...],
    ) -> tuple[Net, ...]:
        """The nets' manifest entries, from what the finished files say of themselves."""
        found: dict[str, Net] = {}
        variants: dict[str, list[NetVariant]] = {}
        for one in deployed:
            expected = next(net for net in prepared.nets if net.name == one.net)
            file = places[one.net]
            stage = self._stage(job, expected, one, file, infos[file])
            if expected.net != expected.name:
                variants.setdefault(expected.net, []).append(
                    NetVariant(name=one.net, file=file, axes=_lengths(expected), **stage)
                )
                continue
            found[one.net] = Net(
                name=one.net,
                file=file,
                artifact_net=artifact_net(job, one.net),
                host_lookups=lookups,
                **stage,
            )
        for net, ones in variants.items():
            axes = _lengths(next(shape for shape in prepared.nets if shape.name == net))
            found[net] = found[net].model_copy(update={"axes": axes, "variants": tuple(ones)})
        return tuple(found.values())

    def _stage(
        self, job: Job, expected: PreparedNet, made: Deployed, file: str, info: BModelInfo
    ) -> dict[str, Any]:
        """What the entries of a net and of its variants have in common."""
        name = artifact_net(job, made.net)
        found = info.stage(name, expected.inputs)
        if found is None:
            raise ToolError(f"{file}: has nets {sorted(info.nets)}, but no {name}")
        estimate = None
        if made.estimate_ms is not None:
            source = f"tpu_mlir {command_lines.version()} {job.target.estimate_file}"
            estimate = Estimate(latency_ms=made.estimate_ms, source=source)
        return {
            "inputs": match_inputs(expected.inputs, found, file),
            "outputs": match_outputs(expected.outputs, found, file),
            "estimate": estimate,
            "fusions": made.fusions,
            "work": made.work,
        }


def _sources(job: Job, rewrites: Sequence[str]) -> str:
    """Digest of the modules that make a BModel; what makes its examples is in their digest."""
    integers = () if job.built_as == INTEGER else ("compile.bmodel.integers",)
    return source_digest(
        "compile.bmodel.backend",
        without=("compile.calibration", *integers),
        by_name=[f"compile.bmodel.rewrites.{name}" for name in rewrites],
    )


def _lengths(net: PreparedNet) -> dict[str, int]:
    """Lengths that tell a net's variants apart."""
    return {axis: net.axes[axis] for axis in ("batch", "text_tokens", "past_tokens")}
