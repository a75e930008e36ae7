"""Embedding lookups by graph inputs -> graph inputs that take the looked-up rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from compile.bmodel.rewrites import Lookup, Rewritten
from compile.graphs.graph import (
    constants,
    producers,
    remove_unused,
    replace_nodes,
    tensor_value,
    uses,
)

REASON = (
    "a Gather of embedding rows splits a BM1684 net into a dynamic part that its simulator aborts "
    "on; the host looks the rows up and feeds them"
)


def rewrite(model: onnx.ModelProto, folder: Path) -> Rewritten:
    """Moves every Gather of a constant table's rows by a graph input to the host."""
    known = constants(model)
    made_by = producers(model)
    graph_inputs = {v.name: v for v in model.graph.input if v.name not in known}
    lookups: list[Lookup] = []
    kept: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        indices = _looked_up(node, known, made_by, graph_inputs)
        if indices is None:
            kept.append(node)
            continue
        table = tensor_value(known[node.input[0]], folder).astype(np.float32)
        number = sum(lookup.indices == indices for lookup in lookups)
        suffix = f".{number}" if number else ""
        lookup = Lookup(indices, f"{indices}.embeddings{suffix}", table)
        lookups.append(lookup)
        renamed[node.output[0]] = lookup.input
        _add_input(model, graph_inputs[indices], lookup)
    replace_nodes(model, kept)
    # A Cast of the indices that only served a lookup is dead now.
    remove_unused(model)
    for indices in dict.fromkeys(lookup.indices for lookup in lookups):
        first = next(lookup.input for lookup in lookups if lookup.indices == indices)
        _shape_from_rows(model, indices, first, len(_dimensions(graph_inputs[indices])))
        if not uses(model)[indices]:
            model.graph.input.remove(graph_inputs[indices])
    return Rewritten(len(lookups), tuple(lookups))


def _dimensions(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def _looked_up(
    node: onnx.NodeProto,
    known: Mapping[str, TensorProto],
    made_by: Mapping[str, onnx.NodeProto],
    graph_inputs: Mapping[str, onnx.ValueInfoProto],
) -> str | None:
    """The graph input whose values select rows here, or None when this is no such lookup."""
    if node.op_type != "Gather" or node.input[0] not in known:
        return None
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    if axis != 0 or len(known[node.input[0]].dims) != 2:
        return None
    name = node.input[1]
    while (maker := made_by.get(name)) is not None and maker.op_type in {"Cast", "Identity"}:
        name = maker.input[0]
    return name if name in graph_inputs else None


def _add_input(model: onnx.ModelProto, indices: onnx.ValueInfoProto, lookup: Lookup) -> None:
    """Puts the new input where its indices stand, so the order of inputs stays the contract's."""
    shape = [*_dimensions(indices), lookup.table.shape[1]]
    added = helper.make_tensor_value_info(lookup.input, TensorProto.FLOAT, shape)
    position = next(i for i, v in enumerate(model.graph.input) if v.name == indices.name)
    model.graph.input.insert(position, added)


def _shape_from_rows(model: onnx.ModelProto, indices: str, rows: str, rank: int) -> None:
    """Lets nodes that only ask for the indices' shape ask the rows' leading axes instead."""
    for node in model.graph.node:
        if node.op_type != "Shape" or node.input[0] != indices:
            continue
        ends = {a.name: a.i for a in node.attribute}
        start = ends.get("start", 0)
        end = ends.get("end", rank)
        del node.attribute[:]
        node.input[0] = rows
        node.attribute.extend(
            [
                helper.make_attribute("start", start + rank if start < 0 else start),
                helper.make_attribute("end", end + rank if end < 0 else min(end, rank)),
            ]
        )
