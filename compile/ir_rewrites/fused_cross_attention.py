"""Cross-attention as one ScaledDotProductAttention operation, which plugins run as one kernel.

For one query per head the kernel reads keys and values once and in order; two matrix products and a
softmax take longer (docs/openvino.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compile.ir_rewrites import Rewritten, nodes
from configs.manifest import Net

if TYPE_CHECKING:
    import openvino

REASON = "one kernel for cross-attention instead of two products and a softmax"


def rewrite(model: openvino.Model, net: Net) -> Rewritten:
    """Replaces MatMul, Add where there is a mask, Softmax and MatMul of each layer.

    Keys must be ready: scaled, and in the layout of the operation.
    """
    import numpy as np
    from openvino import opset13

    count = nodes.layers(model.inputs, "cross")
    for layer in range(count):
        key = nodes.parameter(model, f"cross.{layer}.key").output(0)
        value = nodes.parameter(model, f"cross.{layer}.value").output(0)
        scores = nodes.only_consumer(key, "MatMul")
        following = nodes.consumers(scores.output(0))[0]
        # The operation has no place for a scale without a mask before it.
        mask = opset13.constant(np.zeros((1, 1, 1, 1), dtype=np.float32)).output(0)
        softmax = following
        if following.get_type_name() == "Add":
            mask = following.input_value(1)
            softmax = nodes.only_consumer(following.output(0), "Softmax")
        context = nodes.only_consumer(softmax.output(0), "MatMul")
        fused = opset13.scaled_dot_product_attention(
            scores.input_value(0), key, value, mask, opset13.constant(np.float32(1.0))
        )
        nodes.redirect(context.output(0), fused.output(0))
    return Rewritten(count, net)
