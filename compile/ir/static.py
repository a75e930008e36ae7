"""IR of fixed shapes, for devices that compile no others (NPU).

A decoder never gets nets of fewer than four query tokens: with fixed shapes, one query token, an
additive mask and bfloat16 arithmetic the CPU plugin takes a fused attention kernel whose answers
are wrong from the second token on (docs/adr/0006-openvino-decoder.md). A step therefore has
room for four tokens, of which the runtime masks all but the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compile.backend import Source
from compile.ir.model import read_graph
from compile.ir.plan import LEAST_QUERY_TOKENS
from configs.errors import ToolError
from pipeline.manifest import Net, TensorSpec
from pipeline.net_shapes import NetShape, bind

if TYPE_CHECKING:
    import openvino


def static_model(source: Source, shape: NetShape) -> tuple[openvino.Model, Net]:
    """A component with fixed shapes, and its net.

    Raises:
        ToolError: a decoder with too few query tokens, or shapes that do not fit.
    """
    tokens = shape.axes["text_tokens"]
    if source.manifest.component == "text_decoder" and tokens < LEAST_QUERY_TOKENS:
        raise ToolError(
            f"text_decoder {shape.name}: {tokens} query tokens with fixed shapes may be answered "
            f"wrongly by a fused kernel; use at least {LEAST_QUERY_TOKENS}"
        )
    return fixed(source.onnx, source.manifest.nets[0], shape.axes, shape.name)


def fixed(
    onnx: Path, exported: Net, axes: Mapping[str, int], name: str
) -> tuple[openvino.Model, Net]:
    """A graph with every axis bound, whatever that gives.

    Raises:
        ToolError: the shapes do not fit the graph.
    """
    model = read_graph(onnx)
    try:
        model.reshape({n: list(s) for n, s in bind(exported.inputs, axes).items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ToolError(f"{onnx.name}: shapes of {name} do not fit ({reason})") from None

    def bound(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        shapes = bind(specs, axes)
        return tuple(replace(spec, shape=shapes[spec.name]) for spec in specs)

    net = replace(
        exported,
        name=name,
        inputs=bound(exported.inputs),
        outputs=bound(exported.outputs),
        first_logit=None,
    )
    return model, net
