"""ONNX -> OpenVINO IR with dynamic shapes.

Shapes stay dynamic on purpose: a static one-token decoder with an additive mask falls into a fused
attention kernel that answers wrongly in bf16 (docs/adr/0003-compile-rewrites.md).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.backend import Job, Source, manifest_fields
from configs.build import source_digest, tool_versions
from configs.errors import InputError, ToolError
from configs.load import shown
from configs.manifest import Net, TensorSpec

if TYPE_CHECKING:
    import openvino

#: Numbers of bytes that are no weights: shapes, indices, scalars.
_SLACK_BYTES = 65_536
_BYTES_PER_WEIGHT = {"f16": 2, "f32": 4}
#: Two threads that use the binding for the first time wait for each other forever: one holds its
#: one-time initialisation, the other Python's global lock.
_one_at_a_time = threading.Lock()


class OpenVinoBackend:
    """Builds IR files in this process with OpenVINO's own converter."""

    def key_inputs(self, job: Job, source: Source) -> dict[str, Any]:
        """Graph, precision, tool and this stage's own source."""
        return {
            "stage": source_digest("compile"),
            "onnx": source.digests,
            "precision": job.precision,
            "tools": tool_versions("openvino"),
        }

    def plan(self, job: Job, source: Source | None) -> list[str]:  # noqa: ARG002 - interface
        """One line; the converter is a library call."""
        onnx = shown(job.layout.onnx(job.task, job.component).file(".onnx"))
        xml = shown(job.location.file(".xml"))
        return [f"# openvino: convert {onnx} to {xml}, weights {job.precision}, dynamic shapes"]

    def memory_bytes(self, source: Source) -> int:
        """The graph, its converted weights, and a serialised copy."""
        return int(0.4e9 + 2.5 * source.size_bytes)

    def build(self, job: Job, source: Source, folder: Path) -> dict[str, Any]:
        """Converts, saves, reads back and checks names, shapes and size."""
        with _one_at_a_time:
            return self._build(job, source, folder)

    def _build(self, job: Job, source: Source, folder: Path) -> dict[str, Any]:
        # Here, not above: an unchanged run must not wait for OpenVINO to load.
        import openvino

        xml = folder / f"{job.location.stem}.xml"
        try:
            # Not convert_model: it reports every call to a server and gives the same IR.
            model = openvino.Core().read_model(source.onnx)
        except Exception as error:
            # OpenVINO raises bare RuntimeError and its own frontend errors.
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"{shown(source.onnx)}: OpenVINO cannot convert this file ({reason}); "
                "run: make export FORCE=1"
            ) from None
        exported = source.manifest.nets[0]
        _check(model, exported, source.onnx)
        try:
            openvino.save_model(model, xml, compress_to_fp16=job.precision == "f16")
            saved = openvino.Core().read_model(xml)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ToolError(
                f"{shown(job.location.folder)}: OpenVINO could not write the IR ({reason}); "
                "check free space"
            ) from None
        net = _check(saved, exported, xml)
        _check_size(xml.with_suffix(".bin"), job, source)
        return {
            **manifest_fields(job, source),
            "nets": (net.model_copy(update={"file": xml.name}),),
            "tools": tool_versions("openvino"),
        }


def _check(model: openvino.Model, exported: Net, where: Path) -> Net:
    """The net as the IR has it; its tensors must be the contract's, dynamic where that is."""

    def matched(specs: tuple[TensorSpec, ...], ports: list[Any], side: str) -> list[TensorSpec]:
        found = {name: port for port in ports for name in port.get_names()}
        result = []
        for spec in specs:
            port = found.get(spec.name)
            if port is None or len(ports) != len(specs):
                raise ToolError(
                    f"{where}: {side}s are {sorted(found)}, expected {[s.name for s in specs]}"
                )
            shape = tuple(
                axis if dimension.is_dynamic else dimension.get_length()
                for axis, dimension in zip(spec.shape, port.get_partial_shape(), strict=True)
            )
            if shape != spec.shape:
                raise ToolError(
                    f"{where}: {side} {spec.name} has shape {port.get_partial_shape()}, "
                    f"expected {list(spec.shape)}"
                )
            dtype = port.get_element_type().to_dtype().name
            result.append(spec.model_copy(update={"artifact_name": spec.name, "dtype": dtype}))
        return result

    return Net(
        name="main",
        file="",
        inputs=tuple(matched(exported.inputs, model.inputs, "input")),
        outputs=tuple(matched(exported.outputs, model.outputs, "output")),
    )


def _check_size(binary: Path, job: Job, source: Source) -> None:
    """The weights file holds each exported weight once, in the wanted precision.

    Raises:
        ToolError: it is larger, e.g. because a shared embedding was written twice, or cut short.
    """
    weights = source.size_bytes / 4
    expected = weights * _BYTES_PER_WEIGHT[job.precision]
    actual = binary.stat().st_size
    if not 0.5 * expected - _SLACK_BYTES <= actual <= expected * 1.02 + _SLACK_BYTES:
        raise ToolError(
            f"{binary.name}: {actual:,} bytes, expected about {expected:,.0f} "
            f"({weights:,.0f} weights in {job.precision}); look for weights stored twice"
        )
