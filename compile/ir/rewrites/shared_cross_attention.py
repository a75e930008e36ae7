"""Beams of one image attend to one copy of its cross keys and values.

The decoder's rows may be a multiple of the contexts: the queries of a context's rows are laid side
by side, ``[contexts, rows per context x tokens, heads, head_size]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compile.ir.rewrites import Rewritten, nodes
from pipeline.manifest import Net

if TYPE_CHECKING:
    import openvino

REASON = "beams of an image share its cross keys and values instead of repeating them"


def rewrite(model: openvino.Model, net: Net) -> Rewritten:
    """Regroups queries and contexts of every cross-attention."""
    from openvino import opset13

    count = nodes.layers(model.inputs, "cross")
    if not count:
        return Rewritten(0, net)
    first = nodes.parameter(model, "cross.0.key")
    zero = opset13.constant(np.array([0], dtype=np.int64))
    contexts = opset13.gather(
        opset13.shape_of(first.output(0), "i64"), zero, opset13.constant(np.int64(0))
    )
    regroup: nodes.Node | None = None
    rows: nodes.Node | None = None
    for layer in range(count):
        key = nodes.parameter(model, f"cross.{layer}.key")
        found = nodes.Attention.of_keys(key.output(0))
        split = found.query.get_node().input_value(0).get_node()
        joined = nodes.only_consumer(
            nodes.only_consumer(found.context.output(0), "Transpose").output(0), "Reshape"
        )
        if regroup is None or rows is None:
            shape = key.get_partial_shape()
            tail = [-1, shape[2].get_length(), shape[3].get_length()]
            regroup = opset13.concat([contexts, np.array(tail, dtype=np.int64)], axis=0)
            # Every layer's queries have one shape; the first layer's says how to undo the grouping.
            rows = opset13.shape_of(split.input_value(0), "i64")
        split.input(1).replace_source_output(regroup.output(0))
        joined.input(1).replace_source_output(rows.output(0))
    model.validate_nodes_and_infer_types()
    return Rewritten(count, net)
