"""What an IR stores: each exported weight once, in the wanted number format.

OpenVINO keeps a matrix in float32 where half precision would lose most of it: values below its
range become zero, large ones are rounded. Such an IR is right, only larger, and its manifest names
those constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from compile.graphs.graph import load_graph
from compile.ir.plan import IrPlan
from configs.errors import ToolError
from configs.precisions import PRECISIONS
from pipeline.manifest import KeptConstant

if TYPE_CHECKING:
    import openvino

#: What is no weight: shapes, indices.
_INDICES = ("i64", "i32", "boolean")
#: Numbers that OpenVINO adds by itself: scalars, and what was folded.
_SLACK, _SLACK_BYTES = 4096, 65_536
#: Numbers beside the weights, as a share of them: none, or an integer matrix's scales and zeros.
_BESIDE_FLOATS, _BESIDE_INTEGERS = 0.01, 0.1


def check_constants(model: openvino.Model, plan: IrPlan, file: str) -> tuple[KeptConstant, ...]:
    """Compares what a saved IR stores with what was exported.

    Returns:
        The constants that stay in float32 beside half precision, and how much of each does not fit.

    Raises:
        ToolError: weights are missing, stored twice, or in another number format.
    """
    wanted = PRECISIONS[plan.precision]
    exported = sum(_exported(plan))
    # Two constants of one content share their place in the file.
    places: dict[int, int] = {}
    count = size_bytes = 0
    kept = []
    for constant in _constants(model):
        values = int(np.prod(constant.get_output_shape(0)))
        address = constant.data.__array_interface__["data"][0]
        if address not in places:
            size_bytes += constant.get_byte_size()
        places[address] = values
        count += values
        if wanted.weights == "f16" and values > 1 and _type(constant) == "f32":
            kept.append(_kept(constant, values, file))
    stored = sum(places.values())
    beside = _BESIDE_INTEGERS if wanted.integer_weights else _BESIDE_FLOATS
    if stored > exported * (1 + beside) + _SLACK:
        raise ToolError(
            f"{file}: stores {stored:,} numbers for {exported:,} exported weights; look for "
            "weights stored twice"
        )
    if count < exported * (1 - _BESIDE_FLOATS):
        raise ToolError(
            f"{file}: holds {count:,} of {exported:,} exported weights; run again with FORCE=1"
        )
    if wanted.ir_bytes is None:
        raise ValueError(f"{plan.precision}: OpenVINO builds no such IR")
    most = exported * wanted.ir_bytes
    if wanted.integer_weights and size_bytes > most + _SLACK_BYTES:
        raise ToolError(
            f"{file}: {size_bytes:,} bytes for {exported:,} weights as {plan.precision}, expected "
            f"at most {most:,.0f}; look for matrices that did not become integers"
        )
    return tuple(kept)


def _exported(plan: IrPlan) -> Iterator[int]:
    """Sizes of the exported weights."""
    for part in (plan.source, *plan.included):
        for tensor in load_graph(part.onnx).graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                yield int(np.prod(tensor.dims))


def _constants(model: openvino.Model) -> Iterator[Any]:
    for operation in model.get_ops():
        if operation.get_type_name() == "Constant" and _type(operation) not in _INDICES:
            yield operation


def _type(constant: Any) -> str:
    return str(constant.get_element_type().get_type_name())


def _kept(constant: Any, values: int, file: str) -> KeptConstant:
    magnitude = np.abs(constant.data)
    with np.errstate(over="ignore"):
        moved = np.abs(magnitude.astype(np.float16).astype(np.float32) - magnitude)
    # As OpenVINO counts: what becomes zero or infinite, and what rounding moves by more than 1.
    lost = float(np.mean((moved == magnitude) & (magnitude > 0) | (moved > 1.0)))
    name = str(constant.get_friendly_name())
    if not lost:
        raise ToolError(
            f"{file}: {name} is stored in float32, though half precision holds all of it; "
            "build this component as f32"
        )
    return KeptConstant(name=name, values=values, lost=lost, largest=float(magnitude.max()))
