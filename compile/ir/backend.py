"""ONNX -> OpenVINO IR with dynamic shapes, rewritten for speed (docs/openvino.md).

Shapes stay dynamic on purpose: a static one-token decoder with an additive mask falls into a fused
attention kernel that answers wrongly in bf16 (docs/adr/0006-openvino-decoder.md).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.backend import Job, Source, manifest_fields, read_source
from compile.calibration.examples import examples_digest
from compile.calibration.given import GivenFiles
from compile.ir.plan import INTEGERS, MERGE, holder, includes, needs_calibration, rewrite_names
from configs.errors import ToolError
from configs.load import shown
from configs.schema import Component, Task
from pipeline.build import tool_versions
from pipeline.manifest import Net, TensorSpec
from pipeline.sources import source_digest

if TYPE_CHECKING:
    import openvino

#: Numbers of bytes that are no weights: shapes, indices, scalars.
_SLACK_BYTES = 65_536
#: Least and most bytes per weight. What is no product's weight (norms, biases, tables of
#: positions, projections beside a residual) stays in half precision in an integer IR; scales add
#: a few percent.
_BYTES_PER_WEIGHT = {
    "f32": (2.0, 4.08),
    "f16": (1.0, 2.04),
    "int8": (0.9, 1.25),
    "w8f16": (0.9, 1.25),
    "w4f16": (0.5, 1.1),
}
#: Two threads that use the binding for the first time wait for each other forever: one holds its
#: one-time initialisation, the other Python's global lock.
_one_at_a_time = threading.Lock()


class OpenVinoBackend:
    """Builds IR files in this process with OpenVINO's own converter."""

    def __init__(self) -> None:
        self._given = GivenFiles()

    def holder(self, task: Task, component: Component) -> Component:
        """See ``Backend``."""
        return holder(task, component)

    def check(self, job: Job, source: Source | None, *, keep: bool) -> None:  # noqa: ARG002 - interface
        """Pictures of a user's own that an integer IR is calibrated with."""
        if needs_calibration(job.built_as):
            self._given.check_data(job, None, keep=keep)

    def key_inputs(self, job: Job, source: Source) -> dict[str, Any]:
        """Graph, precision, tool and this stage's own source."""
        return {
            "sources": _sources(job),
            "onnx": source.digests,
            "included": [part.digests for part in _included(job)],
            "settings": job.settings(source.task.dimensions.image_tokens),
            "examples": _examples(job),
            "tools": _tools(job),
        }

    def plan(self, job: Job, source: Source | None) -> list[str]:  # noqa: ARG002 - interface
        """One line; the converter is a library call."""
        parts = (job.component, *includes(job.task, job.component))
        onnx = " + ".join(shown(job.layout.onnx(job.task, part).file(".onnx")) for part in parts)
        xml = shown(job.location.file(".xml"))
        done = ", ".join(rewrite_names(job.task, job.component)) or "none"
        return [
            f"# openvino: convert {onnx} to {xml}, weights {job.built_as}, dynamic shapes; "
            f"rewrites: {done}"
        ]

    def memory_bytes(self, source: Source) -> int:
        """The graph in onnxruntime and in OpenVINO, compiled, and a serialised copy."""
        return int(0.4e9 + 4.5 * source.size_bytes)

    def build(self, job: Job, source: Source, folder: Path) -> dict[str, Any]:
        """Converts, rewrites, saves, reads back and checks names, shapes and size."""
        with _one_at_a_time:
            return self._build(job, source, folder)

    def _build(self, job: Job, source: Source, folder: Path) -> dict[str, Any]:
        # Here, not above: an unchanged run must not wait for them to load.
        from compile.ir.model import prepare
        from compile.ir.precision import convert

        if job.target.static_shapes:
            return self._build_static(job, source, folder)
        included = _included(job)
        prepared = prepare(job.task, source, included)
        xml = folder / f"{job.location.stem}.xml"
        model = prepared.model
        if job.built_as in INTEGERS:
            model = convert(model, job, job.built_as)
        saved = _save(model, xml, job)
        net = checked(saved, prepared.net, xml)
        size_bytes = sum(part.size_bytes for part in (source, *included))
        _check_size(xml.with_suffix(".bin"), job, size_bytes)
        return {
            **manifest_fields(job, source),
            "includes": includes(job.task, job.component),
            "rewrites": prepared.rewrites,
            "nets": (net.model_copy(update={"file": xml.name}),),
            "tools": _tools(job),
        }

    def _build_static(self, job: Job, source: Source, folder: Path) -> dict[str, Any]:
        """One IR per net; weights are stored with each."""
        from compile.ir.static import static_model, static_shapes

        nets = []
        for shape in static_shapes(job, source):
            model, net = static_model(source, shape)
            suffix = "" if shape.name == "main" else f"_{shape.name}"
            xml = folder / f"{job.location.stem}{suffix}.xml"
            found = checked(_save(model, xml, job), net, xml)
            _check_size(xml.with_suffix(".bin"), job, source.size_bytes)
            nets.append(found.model_copy(update={"file": xml.name}))
        return {**manifest_fields(job, source), "nets": tuple(nets), "tools": _tools(job)}


def _save(model: openvino.Model, xml: Path, job: Job) -> openvino.Model:
    """Writes an IR and reads it back."""
    import openvino

    try:
        openvino.save_model(model, xml, compress_to_fp16=job.built_as != "f32")
        return openvino.Core().read_model(xml)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ToolError(
            f"{shown(job.location.folder)}: OpenVINO could not write the IR ({reason}); "
            "check free space"
        ) from None


def _tools(job: Job) -> dict[str, str]:
    return tool_versions("openvino", *(("nncf",) if job.built_as in INTEGERS else ()))


def _sources(job: Job) -> str:
    """Digest of the modules that make an IR; what makes its examples is in their digest."""
    static = job.target.static_shapes
    unused = {
        "compile.calibration": True,
        f"compile.ir.rewrites.{MERGE}": not includes(job.task, job.component),
        "compile.ir.static": not static,
        "compile.ir.precision": static or job.built_as not in INTEGERS,
        "compile.ir.rewrites": static,
    }
    names = () if static else rewrite_names(job.task, job.component)
    return source_digest(
        "compile.ir.backend",
        without=[module for module, is_unused in unused.items() if is_unused],
        by_name=[f"compile.ir.rewrites.{name}" for name in names],
    )


def _examples(job: Job) -> str | None:
    """Digest of what the ranges of activations come from."""
    if not needs_calibration(job.built_as):
        return None
    return examples_digest(job.layout.pipeline.calibration, None)


def _included(job: Job) -> list[Source]:
    return [read_source(job.layout, job.task, part) for part in includes(job.task, job.component)]


def checked(model: openvino.Model, net: Net, where: Path) -> Net:
    """The net as the IR has it; its tensors must be as described, dynamic where that is.

    Raises:
        ToolError: a tensor is missing, superfluous, or of another shape.
    """
    states = {name for state in net.states for name in (state.past, state.new)}
    extra = 1 if net.row_index else 0

    def matched(specs: tuple[TensorSpec, ...], ports: list[Any], side: str) -> list[TensorSpec]:
        found = {name: port for port in ports for name in port.get_names()}
        wanted = [spec.name for spec in specs if spec.name not in states]
        if len(ports) != len(wanted) + (extra if side == "input" else 0):
            raise ToolError(f"{where}: {side}s are {sorted(found)}, expected {wanted}")
        result = []
        for spec in specs:
            if spec.name in states:
                by_state = {n: st.artifact_name for st in net.states for n in (st.past, st.new)}
                result.append(spec.model_copy(update={"artifact_name": by_state[spec.name]}))
                continue
            port = found.get(spec.name)
            if port is None:
                raise ToolError(f"{where}: {side}s are {sorted(found)}, expected {wanted}")
            order = spec.layout.order if spec.layout else range(len(spec.shape))
            axes = [spec.shape[axis] for axis in order]
            shape = [
                axis if dimension.is_dynamic else dimension.get_length()
                for axis, dimension in zip(axes, port.get_partial_shape(), strict=True)
            ]
            if shape != axes:
                raise ToolError(
                    f"{where}: {side} {spec.name} has shape {port.get_partial_shape()}, "
                    f"expected {axes}"
                )
            dtype = port.get_element_type().to_dtype().name
            result.append(spec.model_copy(update={"artifact_name": spec.name, "dtype": dtype}))
        return result

    return net.model_copy(
        update={
            "inputs": tuple(matched(net.inputs, model.inputs, "input")),
            "outputs": tuple(matched(net.outputs, model.outputs, "output")),
        }
    )


def _check_size(binary: Path, job: Job, source_bytes: int) -> None:
    """The weights file holds each exported weight once, in the wanted precision.

    Raises:
        ToolError: it is larger, e.g. because a shared embedding was written twice, or cut short.
    """
    weights = source_bytes / 4
    least, most = (weights * size for size in _BYTES_PER_WEIGHT[job.built_as])
    actual = binary.stat().st_size
    if not least - _SLACK_BYTES <= actual <= most + _SLACK_BYTES:
        raise ToolError(
            f"{binary.name}: {actual:,} bytes, expected {least:,.0f} to {most:,.0f} "
            f"({weights:,.0f} weights as {job.built_as}); look for weights stored twice"
        )
