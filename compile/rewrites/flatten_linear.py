"""Linear layers over ``[batch, tokens, hidden]`` -> over ``[batch * tokens, hidden]``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compile.graph import constants, replace_nodes, uses
from compile.rewrites import Rewritten

REASON = (
    "BM1684's compiler makes an integer operation of a product only where the first axis counts "
    "its rows; every other one stays in float32, whatever calibration says"
)


def rewrite(model: onnx.ModelProto, folder: Path) -> Rewritten:  # noqa: ARG001 - interface
    """Flattens every product with a constant matrix, together with the bias after it."""
    known, used = constants(model), uses(model)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    biases: dict[str, tuple[onnx.NodeProto, str]] = {}
    for node in model.graph.node:
        product = node.output[0] if node.op_type == "MatMul" else ""
        if not product or node.input[1] not in known or len(known[node.input[1]].dims) != 2:
            continue
        after = readers.get(product, [])
        if used[product] == 1 and len(after) == 1 and after[0].op_type == "Add":
            other = [name for name in after[0].input if name != product]
            if len(other) == 1 and other[0] in known and len(known[other[0]].dims) == 1:
                biases[product] = (after[0], other[0])
    nodes: list[onnx.NodeProto] = []
    flattened: dict[str, str] = {}
    sites = 0
    skipped: set[str] = {node.output[0] for node, _ in biases.values()}
    for node in model.graph.node:
        if node.output and node.output[0] in skipped:
            continue
        weight = known.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or len(weight.dims) != 2:
            nodes.append(node)
            continue
        nodes += _flat(model, node, biases.get(node.output[0]), weight.dims, flattened)
        sites += 1
    replace_nodes(model, nodes)
    return Rewritten(sites)


def _flat(
    model: onnx.ModelProto,
    product: onnx.NodeProto,
    bias: tuple[onnx.NodeProto, str] | None,
    dims: object,
    flattened: dict[str, str],
) -> list[onnx.NodeProto]:
    """The nodes of one linear layer: reshape (once per input), product, bias, reshape back."""
    inner, outer = (int(size) for size in dims)  # type: ignore[attr-defined]
    source = product.input[0]
    result = bias[0].output[0] if bias is not None else product.output[0]
    made: list[onnx.NodeProto] = []
    if source not in flattened:
        flattened[source] = f"{source}.rows"
        shape = _constant(model, f"{source}.rows_shape", [-1, inner])
        made.append(helper.make_node("Reshape", [source, shape], [flattened[source]]))
    # The compiler drops a reshape that changes nothing; outputs keep the beginning of their name.
    flat = f"{result}_rows"
    product.input[0] = flattened[source]
    product.output[0] = flat if bias is None else f"{product.output[0]}.product"
    made.append(product)
    if bias is not None:
        addition, name = bias
        made.append(helper.make_node("Add", [product.output[0], name], [flat], name=addition.name))
    # [batch, tokens, hidden in] -> [batch, tokens, hidden out]; folds away with fixed shapes.
    start = _constant(model, f"{result}.axes_start", [0])
    end = _constant(model, f"{result}.axes_end", [-1])
    last = _constant(model, f"{result}.hidden", [outer])
    names = [f"{result}.{part}" for part in ("shape", "leading", "full_shape")]
    made += [
        helper.make_node("Shape", [source], [names[0]]),
        helper.make_node("Slice", [names[0], start, end], [names[1]]),
        helper.make_node("Concat", [names[1], last], [names[2]], axis=0),
        helper.make_node("Reshape", [flat, names[2]], [result]),
    ]
    return made


def _constant(model: onnx.ModelProto, name: str, values: list[int]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
    return name
