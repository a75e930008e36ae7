"""The last layer of a text encoder of whose states only the first row is read computes that row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compile.ir.rewrites import Rewritten, nodes
from configs.errors import ToolError
from pipeline.manifest import Net

if TYPE_CHECKING:
    import openvino

REASON = "nobody reads the other rows of the last layer: all of it but keys and values is left out"
#: What reads the states that enter a layer: query, key, value, and the sum after the attention.
_READERS = ["Add", "MatMul", "MatMul", "MatMul"]


def rewrite(model: openvino.Model, net: Net) -> Rewritten:
    """Cuts the first row out of the last layer's input, for its query and its residual sum.

    What follows works row by row; the cut that is there already then has one row to take.
    """
    import numpy as np
    from openvino import opset13

    entering = None
    for node in model.get_ordered_ops():
        for output in node.outputs():
            if sorted(reader.get_type_name() for reader in nodes.consumers(output)) == _READERS:
                entering = output
    if entering is None:
        raise ToolError(f"{model.get_friendly_name()}: no attention; export the component again")
    ports = list(entering.get_target_inputs())
    zero, one = (opset13.constant(np.array([n], dtype=np.int64)) for n in (0, 1))
    first = opset13.slice(entering, zero, one, one, one).output(0)
    for port in ports:
        reader = port.get_node()
        if reader.get_type_name() == "Add" or _is_query(reader):
            port.replace_source_output(first)
    return Rewritten(1, net)


def _is_query(projection: nodes.Node) -> bool:
    """Whether a projection's heads are the left side of the product with the keys."""
    biased = nodes.only_consumer(projection.output(0), "Add")
    heads = nodes.only_consumer(biased.output(0), "Reshape")
    transposed = nodes.only_consumer(heads.output(0), "Transpose")
    product = nodes.only_consumer(transposed.output(0), "MatMul")
    return bool(product.input_value(0).get_node() == transposed)
