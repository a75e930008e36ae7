"""Softmax(query x key * scale) -> softmax((query * scale) x key): attention in single operators."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

from compile.bmodel.rewrites import Rewritten
from compile.graphs.graph import constants, producers, replace_nodes, uses

REASON = (
    "the scale on attention scores moves to the query, a smaller tensor; the compiler recognises "
    "attention by it, so this is also the opt-out of fused attention (attention_fusion: off)"
)


def rewrite(model: onnx.ModelProto, folder: Path) -> Rewritten:  # noqa: ARG001 - interface
    """Moves every constant scale of attention scores in front of their product."""
    made_by, known, used = producers(model), constants(model), uses(model)
    scaled: dict[str, tuple[onnx.NodeProto, str]] = {}
    for node in model.graph.node:
        if node.op_type != "Softmax":
            continue
        names = list(node.input)
        summed = made_by.get(names[0])
        if summed is not None and summed.op_type == "Add":
            names = list(summed.input)
        for maker in (made_by.get(name) for name in names):
            if maker is None or maker.op_type != "Mul" or maker.input[1] not in known:
                continue
            product = made_by.get(maker.input[0])
            if product is not None and product.op_type == "MatMul" and used[product.output[0]] == 1:
                scaled[product.output[0]] = (product, maker.input[1])
                maker.op_type = "Identity"
                del maker.input[1:]
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        found = scaled.get(node.output[0]) if node.output else None
        if found is not None:
            product, scale = found
            query = f"{product.output[0]}.scaled_query"
            nodes.append(helper.make_node("Mul", [product.input[0], scale], [query], name=query))
            product.input[0] = query
        nodes.append(node)
    replace_nodes(model, nodes)
    return Rewritten(len(scaled))
