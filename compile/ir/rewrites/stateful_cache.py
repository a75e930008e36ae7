"""Past keys and values as states of the model instead of tensors that go in and out.

A state stays in the plugin's own layout and type, and grows in place. ``beam_idx`` ``[rows]`` says
which row of the last call each row continues, so beams are reordered inside the graph.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from compile.ir.rewrites import Rewritten, nodes
from pipeline.manifest import Net, State

if TYPE_CHECKING:
    import openvino

REASON = "keys and values of earlier tokens never leave the model; beams are reordered inside it"

BEAM_INDEX = "beam_idx"
#: axes of the contract's ``[batch, tokens, heads, head_size]`` in a state
ORDER = (0, 2, 1, 3)


def rewrite(model: openvino.Model, net: Net) -> Rewritten:
    """Turns ``past.*`` inputs and ``new.*`` outputs into states."""
    import numpy as np
    import openvino
    from openvino import opset6, opset13
    from openvino.op.util import Variable, VariableInfo

    count = nodes.layers(model.inputs, "past")
    if not count:
        return Rewritten(0, net)
    zero = opset13.constant(np.int64(0))
    beams = opset13.parameter([-1], np.int32, name=BEAM_INDEX)
    nodes.rename(beams.output(0), BEAM_INDEX)
    order = opset13.constant(np.array(ORDER, dtype=np.int64))
    rows = opset13.shape_of(beams.output(0), "i64")
    initial: dict[tuple[int, int], nodes.Node] = {}
    variables, sinks, states = [], [], []
    for layer in range(count):
        for part in ("key", "value"):
            name = f"past.{layer}.{part}"
            past = nodes.parameter(model, name)
            joined = nodes.only_consumer(past.output(0), "Concat")
            transposed = nodes.only_consumer(joined.output(0), "Transpose")
            heads, size = (int(past.get_partial_shape()[i].get_length()) for i in (2, 3))
            if (heads, size) not in initial:
                shape = opset13.concat([rows, np.array([heads, 0, size], dtype=np.int64)], axis=0)
                initial[heads, size] = opset13.broadcast(np.float32(0.0), shape)
            info = VariableInfo()
            info.data_shape = openvino.PartialShape([-1, heads, -1, size])
            info.data_type = openvino.Type.f32
            info.variable_id = name
            variable = Variable(info)
            read = opset6.read_value(initial[heads, size].output(0), variable)
            kept = opset13.gather(read.output(0), beams.output(0), zero)
            new = opset13.transpose(joined.input_value(1), order)
            grown = opset13.concat([kept.output(0), new.output(0)], axis=2)
            nodes.redirect(transposed.output(0), grown.output(0))
            variables.append(variable)
            sinks.append(opset6.assign(grown, variable))
            states.append(
                State(past=name, new=f"new.{layer}.{part}", artifact_name=name, order=ORDER)
            )
            model.remove_result(nodes.result(model, f"new.{layer}.{part}"))
            model.remove_parameter(past)
    model.add_parameters([beams])
    model.add_variables(variables)
    model.add_sinks(sinks)
    model.validate_nodes_and_infer_types()
    changed = replace(net, states=tuple(states), row_index=BEAM_INDEX)
    return Rewritten(len(states), changed)
