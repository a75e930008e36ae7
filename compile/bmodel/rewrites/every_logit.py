"""Logits of the last token -> logits of every token, so that one pass checks drafted tokens."""

from __future__ import annotations

from pathlib import Path

import onnx

from compile.bmodel.rewrites import Rewritten
from compile.graphs.graph import producers, remove_unused
from pipeline.manifest import FIRST_LOGIT

REASON = (
    "shapes.draft_tokens; a pass that checks drafted tokens takes the answer after each of them"
)
_LOGITS = "logits"


def rewrite(model: onnx.ModelProto, folder: Path) -> Rewritten:  # noqa: ARG001 - interface
    """Takes away the Slice that leaves the head the last token; ``[batch x tokens, vocabulary]``.

    A step has one token, and stays as it is.
    """
    graph, made = model.graph, producers(model)
    logits = next((value for value in graph.output if value.name == _LOGITS), None)
    node = made.get(_LOGITS)
    while node is not None and node.op_type != "Slice":
        node = made.get(node.input[0])
    if logits is None or node is None:
        return Rewritten(0)
    for reader in graph.node:
        for index, name in enumerate(reader.input):
            if name == node.output[0]:
                reader.input[index] = node.input[0]
    kept = [value for value in graph.input if value.name != FIRST_LOGIT]
    del graph.input[:]
    graph.input.extend(kept)
    remove_unused(model)
    logits.type.tensor_type.shape.dim[0].dim_param = "rows"
    return Rewritten(1)
