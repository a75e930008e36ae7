"""Which of a call's tokens have logits is an input, so that one pass checks several drafted ones.

The exported graph has it as a default that OpenVINO reads as a constant: the last token alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from compile.ir.rewrites import Rewritten, nodes
from configs.errors import ToolError
from pipeline.manifest import FIRST_LOGIT, Net

if TYPE_CHECKING:
    import openvino

REASON = "a pass that checks drafted tokens takes the logits of each; others take the last alone"


def rewrite(model: openvino.Model, net: Net) -> Rewritten:
    """Makes an input of the first token with logits, counted from the end."""
    import numpy as np
    from openvino import opset13

    node = nodes.result(model, "logits").input_value(0).get_node()
    while node.get_type_name() != "Slice":
        if not node.get_input_size():
            raise ToolError(f"{model.get_friendly_name()}: no Slice before logits; export it again")
        node = node.input_value(0).get_node()
    first = opset13.parameter([], np.int64, name=FIRST_LOGIT)
    nodes.rename(first.output(0), FIRST_LOGIT)
    start = opset13.unsqueeze(first.output(0), opset13.constant(np.array([0], dtype=np.int64)))
    node.input(1).replace_source_output(start.output(0))
    model.add_parameters([first])
    model.validate_nodes_and_infer_types()
    return Rewritten(1, replace(net, first_logit=FIRST_LOGIT))
