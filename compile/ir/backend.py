"""ONNX -> OpenVINO IR with dynamic shapes, rewritten for speed (docs/openvino.md).

Shapes stay dynamic on purpose: a static one-token decoder with an additive mask falls into a fused
attention kernel that answers wrongly in bf16 (docs/adr/0006-openvino-decoder.md).
"""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.backend import Backend, Job, Source, manifest_fields, read_source
from compile.calibration.examples import examples_digest
from compile.calibration.given import GivenFiles
from compile.ir.plan import MERGE, IrPlan, has_static_shapes, includes, plan_ir
from configs.errors import ToolError
from configs.load import shown
from configs.precisions import PRECISIONS
from configs.schema import TASK_COMPONENTS
from pipeline.build import tool_versions
from pipeline.console import messages
from pipeline.manifest import Net, TensorSpec
from pipeline.sources import source_digest

if TYPE_CHECKING:
    import openvino

    from pipeline.tpu_tools.process import MemoryBudget

#: Two threads that use the binding for the first time wait for each other forever: one holds its
#: one-time initialisation, the other Python's global lock.
_one_at_a_time = threading.Lock()


class OpenVinoBackend(Backend[IrPlan]):
    """Builds IR files in this process with OpenVINO's own converter."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._given = GivenFiles()

    def holder(self, job: Job) -> Job:
        """A component that is merged into another one is built with it; not with fixed shapes."""
        for other in () if has_static_shapes(job) else TASK_COMPONENTS[job.task]:
            if job.component in includes(job.task, other):
                return replace(job, component=other)
        return job

    def check(self, job: Job, *, keep: bool) -> None:
        """Pictures of a user's own that an integer IR is calibrated with."""
        if PRECISIONS[job.built_as].calibrated:
            self._given.check_data(job, None, keep=keep)

    def plan(self, job: Job, source: Source) -> IrPlan:
        """See ``Backend``."""
        return plan_ir(job, source, partial(read_source, job.layout, job.task))

    def key_inputs(self, plan: IrPlan) -> dict[str, Any]:
        """Graph, precision, tool and this stage's own source."""
        return {
            "sources": _sources(plan),
            "onnx": plan.source.digests,
            "included": [part.digests for part in plan.included],
            "rewrites": list(plan.rewrites),
            "settings": plan.job.settings(plan.source.task.dimensions.image_tokens),
            "examples": _examples(plan.job),
            "tools": _tools(plan),
        }

    def build(self, plan: IrPlan, folder: Path) -> dict[str, Any]:
        """Converts, rewrites, saves, reads back and checks names, shapes and constants."""
        # The graph in onnxruntime and in OpenVINO, compiled, and a serialised copy.
        memory_bytes = int(0.4e9 + 4.5 * plan.size_bytes)
        with self._budget.hold(memory_bytes), _one_at_a_time:
            _warn_of_half_precision(plan)
            made = _static(plan, folder) if plan.shapes else _dynamic(plan, folder)
        return {**manifest_fields(plan), **made, "tools": _tools(plan)}


def _dynamic(plan: IrPlan, folder: Path) -> dict[str, Any]:
    # Here, not above: an unchanged run must not wait for them to load.
    from compile.ir.model import rewritten_model
    from compile.ir.precision import convert

    made = rewritten_model(plan)
    model = convert(made.model, plan.job, plan.precision) if plan.integers else made.model
    net = _saved(model, made.net, folder / f"{plan.job.location.stem}.xml", plan)
    return {"includes": plan.includes, "rewrites": made.rewrites, "nets": (net,)}


def _static(plan: IrPlan, folder: Path) -> dict[str, Any]:
    """One IR per net; weights are stored with each."""
    from compile.ir.static import static_model

    nets = []
    for shape in plan.shapes:
        model, net = static_model(plan.source, shape)
        suffix = "" if shape.name == "main" else f"_{shape.name}"
        nets.append(_saved(model, net, folder / f"{plan.job.location.stem}{suffix}.xml", plan))
    return {"nets": tuple(nets)}


def _saved(model: openvino.Model, net: Net, xml: Path, plan: IrPlan) -> Net:
    """Writes an IR, reads it back, and checks what it has."""
    # Here, not above: an unchanged run must not wait for it to load.
    import openvino

    from compile.ir.constants import check_constants
    from compile.ir.names import name_by_position

    halved = PRECISIONS[plan.precision].weights != "f32"
    name_by_position(model)
    try:
        openvino.save_model(model, xml, compress_to_fp16=halved)
        saved = openvino.Core().read_model(xml)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ToolError(
            f"{shown(plan.job.location.folder)}: OpenVINO could not write the IR ({reason}); "
            "check free space"
        ) from None
    found = checked(saved, net, xml)
    return replace(found, file=xml.name, kept_in_float32=check_constants(saved, plan, xml.name))


def _warn_of_half_precision(plan: IrPlan) -> None:
    """Some devices compute in f16, whatever the IR stores."""
    from compile.graphs.half_range import beyond_half

    for part in (plan.source, *plan.included):
        if reason := beyond_half(plan.job, part):
            messages.print(f"warning: {reason}", markup=False)


def _tools(plan: IrPlan) -> dict[str, str]:
    return tool_versions("openvino", *(("nncf",) if plan.integers else ()))


def _sources(plan: IrPlan) -> str:
    """Digest of the modules that make an IR; what makes its examples is in their digest."""
    static = bool(plan.shapes)
    unused = {
        "compile.calibration": True,
        "configs.tolerances": True,  # whether a build passes
        "compile.graphs.half_range": True,
        f"compile.ir.rewrites.{MERGE}": not plan.included,
        "compile.ir.static": not static,
        "compile.ir.precision": static or not plan.integers,
        "compile.ir.rewrites": static,
    }
    return source_digest(
        "compile.ir.backend",
        without=[module for module, is_unused in unused.items() if is_unused],
        by_name=[f"compile.ir.rewrites.{name}" for name in plan.rewrites],
    )


def _examples(job: Job) -> str | None:
    """Digest of what the ranges of activations come from."""
    if not PRECISIONS[job.built_as].calibrated:
        return None
    return examples_digest(job.layout.pipeline.calibration, None)


def checked(model: openvino.Model, net: Net, where: Path) -> Net:
    """The net as the IR has it; its tensors must be as described, dynamic where that is.

    Raises:
        ToolError: a tensor is missing, superfluous, or of another shape.
    """
    states = {name for state in net.states for name in (state.past, state.new)}
    extra = bool(net.row_index) + bool(net.first_logit)

    def matched(specs: tuple[TensorSpec, ...], ports: list[Any], side: str) -> list[TensorSpec]:
        found = {name: port for port in ports for name in port.get_names()}
        wanted = [spec.name for spec in specs if spec.name not in states]
        if len(ports) != len(wanted) + (extra if side == "input" else 0):
            raise ToolError(f"{where}: {side}s are {sorted(found)}, expected {wanted}")
        result = []
        for spec in specs:
            if spec.name in states:
                by_state = {n: st.artifact_name for st in net.states for n in (st.past, st.new)}
                result.append(replace(spec, artifact_name=by_state[spec.name]))
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
            result.append(replace(spec, artifact_name=spec.name, dtype=dtype))
        return result

    return replace(
        net,
        inputs=tuple(matched(net.inputs, model.inputs, "input")),
        outputs=tuple(matched(net.outputs, model.outputs, "output")),
    )
