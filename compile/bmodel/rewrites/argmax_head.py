"""Logits -> logits, and beside them the best token and its logit, all that greedy search reads."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from compile.bmodel.rewrites import Rewritten

REASON = (
    "decoder_head: argmax; greedy search then reads a token and its logit instead of the logits of "
    "the whole vocabulary"
)
_LOGITS = "logits"


def rewrite(model: onnx.ModelProto, folder: Path) -> Rewritten:  # noqa: ARG001 - interface
    """Adds ``next_token`` ``[batch, 1]`` int64 and ``next_logit`` ``[batch, 1]`` to a decoder.

    The logits stay an output: they lie in device memory, and searches that need them read them.
    The chips' compiler takes token and logit from one operator, without which it casts all logits
    to float32; and the logit shows an overflow, which a token cannot.
    """
    logits = next((value for value in model.graph.output if value.name == _LOGITS), None)
    if logits is None:
        return Rewritten(0)
    batch = logits.type.tensor_type.shape.dim[0]
    rows = batch.dim_param or batch.dim_value
    model.graph.node.extend(
        [
            helper.make_node(
                "ArgMax", [_LOGITS], ["next_token"], name="next_token", axis=-1, keepdims=1
            ),
            helper.make_node(
                "ReduceMax", [_LOGITS], ["next_logit"], name="next_logit", axes=[-1], keepdims=1
            ),
        ]
    )
    model.graph.output.extend(
        [
            helper.make_tensor_value_info("next_token", TensorProto.INT64, [rows, 1]),
            helper.make_tensor_value_info("next_logit", TensorProto.FLOAT, [rows, 1]),
        ]
    )
    return Rewritten(1)
