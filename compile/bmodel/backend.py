"""ONNX -> SOPHON BModel, through TPU-MLIR (docs/adding-a-target.md)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.backend import Backend, Job, Source, manifest_fields
from compile.bmodel.build import BModelBuild, Deployed
from compile.bmodel.info import BModelInfo, match_inputs, match_outputs
from compile.bmodel.plan import INTEGER, TABLE, THRESHOLDS, BModelPlan, NetPlan, plan_bmodel
from compile.bmodel.rewrites import check_names
from compile.calibration.given import GivenFiles
from configs.errors import ConfigError, ToolError
from configs.precisions import PRECISIONS
from pipeline.build import tool_versions
from pipeline.manifest import Estimate, HostLookup, Net, NetVariant, Quantization, QuantizedNet
from pipeline.sources import source_digest
from pipeline.tpu_tools import command_lines
from pipeline.tpu_tools.process import MemoryBudget, VendorTools

if TYPE_CHECKING:
    from compile.bmodel.integers.quantizer import Calibrated
    from compile.bmodel.prepare import Prepared, PreparedNet


#: Largest value that a table may hold to be kept in half precision.
_LARGEST_HALF = 65504.0


class SophonBackend(Backend[BModelPlan]):
    """Builds BModels; steps that several chips share are kept in the pipeline's work folder."""

    def __init__(self, budget: MemoryBudget, tools: VendorTools) -> None:
        self._build = BModelBuild(budget, tools)
        self._given = GivenFiles()

    def check(self, job: Job, *, keep: bool) -> None:
        """The folder of quantize tables, and calibration data."""
        self._given.check_tables(job, INTEGER)
        if job.built_as == INTEGER:
            self._given.check_data(job, job.task, keep=keep)

    def plan(self, job: Job, source: Source) -> BModelPlan:
        """See ``Backend``; quantize tables are compared with nets that were made before."""
        target = job.chip
        named = (*target.rewrites, *target.integer_rewrites)
        check_names(named, f"configs/targets/{target.name}.yaml")
        plan = plan_bmodel(job, source)
        if plan.calibrated:
            from compile.bmodel.integers.quantizer import check_table

            for net in plan.known.nets:
                check_table(job, net.artifact_net, net.top.folder)
        return plan

    def key_inputs(self, plan: BModelPlan) -> dict[str, Any]:
        """Graph, shapes, rewrites, chip, precision, commands, tools and this stage's own source."""
        job = plan.job
        calibration = {}
        if plan.calibrated:
            from compile.bmodel.integers.quantizer import calibration_key

            nets = list(dict.fromkeys(net.artifact_net for net in plan.nets))
            calibration = {"quantization": calibration_key(job, nets)}
        return {
            **plan.preparation.intermediate.key_inputs,
            **calibration,
            "sources": _sources(plan),
            "settings": job.settings(plan.source.task.dimensions.image_tokens),
            "commands": plan.commands,
            "tools": self._tools(),
        }

    def build(self, plan: BModelPlan, folder: Path) -> dict[str, Any]:
        """Prepare, transform, deploy, combine, read back.

        Raises:
            ConfigError: the chip's half precision cannot hold what the component computes.
        """
        # Here, not above: an unchanged run must not wait for onnxruntime to load.
        from compile.graphs.half_range import beyond_half

        with self._build.measuring(plan.source.size_bytes):
            reason = beyond_half(plan.job, plan.source)
        if reason:
            raise ConfigError(reason)
        prepared = self._build.prepare(plan.preparation)
        plan = plan.settled(prepared.needed)
        shutil.rmtree(plan.folder, ignore_errors=True)
        deployed = []
        quantized: dict[str, QuantizedNet] = {}
        calibrations: dict[str, Calibrated] = {}
        try:
            for net, found in zip(plan.nets, prepared.nets, strict=True):
                top = self._build.transform(plan, net, prepared.weights_bytes)
                files = None
                if plan.calibrated:
                    # Variants come after their net and take its ranges: the same values occur.
                    if not net.shape.is_variant:
                        calibrations[net.name] = self._calibrated(plan, net, prepared, top)
                    calibrated = calibrations[net.shape.net]
                    files = {THRESHOLDS: calibrated.thresholds, TABLE: calibrated.table}
                deployed.append(
                    self._build.deploy(
                        plan, net, top, prepared.weights_bytes, found.attentions, files
                    )
                )
                if files is not None and not net.shape.is_variant:
                    quantized[net.name] = self._record(plan, net, calibrated, folder)
            infos = self._build.assemble(plan, folder)
        finally:
            shutil.rmtree(plan.folder, ignore_errors=True)
        lookups = self._tables(plan, prepared, folder)
        layout = plan.job.chip.memory_layout_mib
        return {
            **manifest_fields(plan),
            "nets": self._nets(plan.job, prepared, deployed, infos, lookups),
            "rewrites": prepared.rewrites,
            "commands": plan.commands,
            "tools": self._tools(),
            "memory_layout_mib": layout.model_dump() if layout else None,
            "device_memory_bytes": sum(info.device_memory_bytes for info in infos.values()),
            "quantization": self._quantization(plan.job, quantized) if quantized else None,
        }

    def _calibrated(
        self, plan: BModelPlan, net: NetPlan, prepared: Prepared, top: Path
    ) -> Calibrated:
        """Thresholds and quantize table of one net."""
        from compile.bmodel.integers.quantizer import calibrate, net_to_quantize

        with self._build.measuring(prepared.weights_bytes):
            return calibrate(net_to_quantize(plan, net, prepared, top))

    def _record(
        self, plan: BModelPlan, net: NetPlan, calibrated: Calibrated, folder: Path
    ) -> QuantizedNet:
        """Puts the net's quantize table beside the BModel, and counts what became integers."""
        from compile.bmodel.integers.quantizer import quantized_net
        from compile.bmodel.integers.tables import SUFFIX

        stem = f"{plan.job.location.stem}.{net.name}"
        table, thresholds = f"{stem}{SUFFIX}", f"{stem}.thresholds"
        (folder / table).write_text(calibrated.readable)
        (folder / thresholds).write_text(calibrated.thresholds)
        return quantized_net(net.folder, net.artifact_net, calibrated, table, thresholds)

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

    def _tools(self) -> dict[str, str]:
        return {"tpu_mlir": command_lines.version(), **tool_versions("onnx", "onnxruntime")}

    def _tables(self, plan: BModelPlan, prepared: Prepared, folder: Path) -> tuple[HostLookup, ...]:
        """Puts the tables of host lookups beside the BModel, in half precision but for f32."""
        # Here, not above: an unchanged run must not wait for numpy to load.
        import numpy as np

        job = plan.job
        copied = []
        for lookup in prepared.lookups:
            table = f"{job.location.stem}.{lookup.table}"
            rows = np.load(plan.preparation.intermediate.folder / lookup.table)
            if PRECISIONS[job.built_as].weights != "f32" and np.max(np.abs(rows)) < _LARGEST_HALF:
                rows = rows.astype(np.float16)
            np.save(folder / table, rows)
            copied.append(replace(lookup, table=table))
        return tuple(copied)

    def _nets(
        self,
        job: Job,
        prepared: Prepared,
        deployed: Sequence[Deployed],
        infos: Mapping[str, BModelInfo],
        lookups: tuple[HostLookup, ...],
    ) -> tuple[Net, ...]:
        """The nets' manifest entries, from what the finished files say of themselves."""
        made = [
            (one.net, self._stage(job, expected, one, infos[one.net.file]))
            for one, expected in zip(deployed, prepared.nets, strict=True)
        ]
        variants: dict[str, list[NetVariant]] = {}
        for net, stage in made:
            if net.shape.is_variant:
                variant = NetVariant(name=net.name, axes=_lengths(net), **stage)
                variants.setdefault(net.shape.net, []).append(variant)
        return tuple(
            Net(
                name=net.name,
                artifact_net=net.artifact_net,
                host_lookups=lookups,
                axes=_lengths(net) if net.name in variants else {},
                variants=tuple(variants.get(net.name, ())),
                **stage,
            )
            for net, stage in made
            if not net.shape.is_variant
        )

    def _stage(
        self, job: Job, expected: PreparedNet, made: Deployed, info: BModelInfo
    ) -> dict[str, Any]:
        """What the entries of a net and of its variants have in common."""
        name, file = made.net.artifact_net, made.net.file
        found = info.stage(name, expected.inputs)
        if found is None:
            raise ToolError(f"{file}: has nets {sorted(info.nets)}, but no {name}")
        estimate = None
        if made.estimate_ms is not None:
            source = f"tpu_mlir {command_lines.version()} {job.chip.estimate_file}"
            estimate = Estimate(latency_ms=made.estimate_ms, source=source)
        return {
            "file": file,
            "inputs": match_inputs(expected.inputs, found, file),
            "outputs": match_outputs(expected.outputs, found, file),
            "estimate": estimate,
            "fusions": made.fusions,
            "work": made.work,
        }


def _sources(plan: BModelPlan) -> str:
    """Digest of the modules that make a BModel; what makes its examples is in their digest."""
    integers = () if plan.calibrated else ("compile.bmodel.integers",)
    return source_digest(
        "compile.bmodel.backend",
        # Tolerances and ranges say whether a build passes.
        without=(
            *("compile.calibration", "compile.bmodel.task_file", "configs.tolerances"),
            "compile.graphs.half_range",
            *integers,
        ),
        by_name=[f"compile.bmodel.rewrites.{name}" for name in plan.preparation.rewrites],
    )


def _lengths(net: NetPlan) -> dict[str, int]:
    """Lengths that tell a net's variants apart."""
    return {axis: net.shape.axes[axis] for axis in ("batch", "text_tokens", "past_tokens")}
