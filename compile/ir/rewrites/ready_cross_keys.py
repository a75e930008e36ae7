"""Cross-attention keys and values in the layout that the decoder's products read.

Both come as ``[batch, heads, encoder_tokens, head_size]``, and keys scaled: work of every token
becomes work of every image. The product of queries and keys transposes the keys itself, which its
kernel does while it reads them; keys stored the other way have rows of an odd number of tokens, and
take up to two thirds longer to read (docs/openvino.md). The producer and the consumer of these
tensors are rewritten alike.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from compile.ir.rewrites import Rewritten, nodes
from pipeline.manifest import Net, TensorLayout, TensorSpec

if TYPE_CHECKING:
    import openvino

REASON = "cross keys are scaled and laid out once per image instead of at every token"

#: axes of the contract's ``[batch, tokens, heads, head_size]`` in a tensor of the artifact
ORDER = (0, 2, 1, 3)


def rewrite(model: openvino.Model, net: Net) -> Rewritten:
    """Changes a decoder's ``cross.*`` inputs, or the outputs of the model that makes them."""
    consumed = nodes.layers(model.inputs, "cross")
    produced = nodes.layers(model.outputs, "cross")
    scale = 1.0
    for layer in range(consumed):
        scale = _consumer(model, layer)
    for layer in range(produced):
        scale = _producer(model, layer, net)
    if not consumed + produced:
        return Rewritten(0, net)
    model.validate_nodes_and_infer_types()

    def described(spec: TensorSpec) -> TensorSpec:
        if not spec.name.startswith("cross."):
            return spec
        if spec.name.endswith("key"):
            return replace(spec, layout=TensorLayout(order=ORDER, scale=scale))
        return replace(spec, layout=TensorLayout(order=ORDER))

    changed = replace(
        net,
        inputs=tuple(described(spec) for spec in net.inputs),
        outputs=tuple(described(spec) for spec in net.outputs),
    )
    return Rewritten(consumed + produced, changed)


def _consumer(model: openvino.Model, layer: int) -> float:
    """Reads ready keys and values in one layer; returns the factor that they must carry."""
    from openvino import opset13

    key = nodes.parameter(model, f"cross.{layer}.key")
    value = nodes.parameter(model, f"cross.{layer}.value")
    found = nodes.Attention.of_keys(key.output(0))
    batch, tokens, heads, size = key.get_partial_shape()
    shape = type(key.get_partial_shape())
    nodes.redirect(found.values.output(0), value.output(0))
    for tensor in (key, value):
        tensor.set_partial_shape(shape([batch, heads, tokens, size]))
    queries = found.scores.input_value(0)
    scores = opset13.matmul(queries, key.output(0), transpose_a=False, transpose_b=True)
    scores.set_friendly_name(found.scores.get_friendly_name())
    scores.output(0).set_names(found.scores.output(0).get_names())
    nodes.redirect(found.scaled.output(0), scores.output(0))
    return found.scale


def _producer(model: openvino.Model, layer: int, net: Net) -> float:
    """Makes ready keys and values of one layer; returns the factor that keys carry."""
    from openvino import opset13

    made = {}
    for part in ("key", "value"):
        name = f"cross.{layer}.{part}"
        result = nodes.result(model, name)
        made[part] = result.input_value(0)
        made[part].get_tensor().set_names({f"plain.{name}"})
        turned = opset13.transpose(made[part], opset13.constant(np.array(ORDER, dtype=np.int64)))
        nodes.rename(turned.output(0), name)
        result.input(0).replace_source_output(turned.output(0))
    size = next(spec.shape[3] for spec in net.outputs if spec.name == "cross.0.key")
    # Scores are scaled by one over the root of the head size (export/components/layers.py).
    factor = float(1.0 / np.sqrt(float(size)))
    bias = made["key"].get_node().input_value(0).get_node()
    for node in (bias, bias.input_value(0).get_node()):
        scaled = nodes.constant(node.input_value(1)) * np.float32(factor)
        node.input(1).replace_source_output(opset13.constant(scaled).output(0))
    return factor
