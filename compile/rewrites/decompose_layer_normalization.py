"""LayerNormalization -> mean, subtraction, variance, root, division, scale, offset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compile.graph import replace_nodes
from compile.rewrites import Rewritten
from configs.errors import ToolError

REASON = (
    "a LayerNormalization over few rows becomes a GroupNorm, which the BM1684 compiler lacks; "
    "arithmetic operators are compiled as they are"
)


def rewrite(model: onnx.ModelProto, folder: Path) -> Rewritten:  # noqa: ARG001 - interface
    """Replaces every LayerNormalization over the last axis.

    Raises:
        ToolError: a LayerNormalization over another axis, or one whose statistics are read.
    """
    nodes: list[onnx.NodeProto] = []
    sites = 0
    for node in model.graph.node:
        if node.op_type != "LayerNormalization":
            nodes.append(node)
            continue
        nodes += _decomposed(model, node, f"layer_normalization_{sites}")
        sites += 1
    replace_nodes(model, nodes)
    return Rewritten(sites)


def _decomposed(model: onnx.ModelProto, node: onnx.NodeProto, prefix: str) -> list[onnx.NodeProto]:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("axis", -1) != -1 or any(node.output[1:]):
        raise ToolError(
            f"{node.name}: only a LayerNormalization over the last axis with one output "
            "can be decomposed"
        )
    epsilon = f"{prefix}.epsilon"
    value = np.asarray(attributes.get("epsilon", 1e-5), dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(value, epsilon))

    value_name = node.input[0]
    steps = [("ReduceMean", [value_name], "mean"), ("Sub", [value_name, "mean"], "centred")]
    # Mul, not Pow: with Pow the compiler recognises the pattern and puts its GroupNorm back.
    steps += [("Mul", ["centred", "centred"], "squared"), ("ReduceMean", ["squared"], "variance")]
    steps += [("Add", ["variance", epsilon], "positive"), ("Sqrt", ["positive"], "deviation")]
    steps += [("Div", ["centred", "deviation"], "normalised")]
    steps += [("Mul", ["normalised", node.input[1]], "scaled")]
    if len(node.input) > 2 and node.input[2]:
        steps += [("Add", ["scaled", node.input[2]], "shifted")]

    own = {name for _, _, name in steps}
    last = steps[-1][2]

    def full(name: str) -> str:
        if name == last:
            return str(node.output[0])
        return f"{prefix}.{name}" if name in own else name

    return [
        helper.make_node(
            operator,
            [full(name) for name in inputs],
            [full(result)],
            name=f"{prefix}.{result}",
            **({"axes": [-1], "keepdims": 1} if operator == "ReduceMean" else {}),
        )
        for operator, inputs, result in steps
    ]
