"""Padding masks ``[batch, 1, 1, tokens]`` -> ``[batch, 1, tokens, tokens]``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compile.bmodel.rewrites import Rewritten
from compile.graphs.graph import constants, producers, replace_nodes

REASON = (
    "the compiler's flash attention (MatMul2FAttention) takes a mask with a row per query only; "
    "one row for all queries keeps a text encoder's self-attention in single operators"
)

_INPUT = "attention_mask"
#: Operators between the graph input and the scores that keep one value per token.
_ELEMENTWISE = {"Cast", "Identity", "Unsqueeze", "Sub", "Mul"}


def rewrite(model: onnx.ModelProto, folder: Path) -> Rewritten:  # noqa: ARG001 - interface
    """Gives every padding mask its rows where its large negative number is multiplied in.

    An Expand would do the same, but the compiler drops it in front of an addition that broadcasts.
    """
    made_by, known = producers(model), constants(model)
    softmax_inputs = {node.input[0] for node in model.graph.node if node.op_type == "Softmax"}
    masks = {
        name
        for node in model.graph.node
        if node.op_type == "Add" and node.output[0] in softmax_inputs
        for name in node.input
        if _is_padding_mask(name, made_by)
    }
    nodes: list[onnx.NodeProto] = []
    sites = 0
    for node in model.graph.node:
        constant = next((i for i, name in enumerate(node.input) if name in known), None)
        if node.output[0] in masks and node.op_type == "Mul" and constant is not None:
            nodes += _rows(model, node, constant)
            sites += 1
        nodes.append(node)
    replace_nodes(model, nodes)
    return Rewritten(sites)


def _is_padding_mask(name: str, made_by: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a tensor comes from the token mask by elementwise operators alone."""
    pending = [name]
    while pending:
        current = pending.pop()
        if current == _INPUT:
            return True
        maker = made_by.get(current)
        if maker is not None and maker.op_type in _ELEMENTWISE:
            pending += maker.input
    return False


def _rows(model: onnx.ModelProto, product: onnx.NodeProto, constant: int) -> list[onnx.NodeProto]:
    """Makes a product's constant ``[1, 1, tokens, 1]``; with fixed shapes its nodes fold away."""
    name = product.output[0]
    one, two = f"{name}.one", f"{name}.ones"
    for title, value in ((one, [1]), (two, [1, 1])):
        array = np.array(value, dtype=np.int64)
        model.graph.initializer.append(numpy_helper.from_array(array, title))
    tokens, shape, column = f"{name}.tokens", f"{name}.rows", f"{name}.column"
    made = [
        helper.make_node("Shape", [_INPUT], [tokens], name=tokens, start=1, end=2),
        helper.make_node("Concat", [two, tokens, one], [shape], name=shape, axis=0),
        helper.make_node("Expand", [product.input[constant], shape], [column], name=column),
    ]
    product.input[constant] = column
    return made
