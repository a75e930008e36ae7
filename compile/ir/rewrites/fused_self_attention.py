"""Self-attention as one ScaledDotProductAttention operation, which plugins run as one kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compile.ir.rewrites import Rewritten, nodes
from pipeline.manifest import Net

if TYPE_CHECKING:
    import openvino

REASON = "one kernel for self-attention; with a state it also holds the key and value cache"


def rewrite(model: openvino.Model, net: Net) -> Rewritten:
    """Replaces MatMul, Multiply, Add, Softmax and MatMul of each layer."""
    import numpy as np
    from openvino import opset13

    count = nodes.layers(model.inputs, "past")
    for layer in range(count):
        keys = nodes.only_consumer(nodes.parameter(model, f"past.{layer}.key").output(0), "Concat")
        found = nodes.Attention.of_keys(keys.output(0))
        order = opset13.constant(np.array([0, 2, 1, 3], dtype=np.int64))
        fused = opset13.scaled_dot_product_attention(
            found.query,
            opset13.transpose(keys.output(0), order).output(0),
            found.values.output(0),
            found.mask,
            opset13.constant(np.float32(found.scale)),
        )
        nodes.redirect(found.context.output(0), fused.output(0))
    return Rewritten(count, net)
