"""The exported graph with the numbers that an IR of half precision stores.

Most constants are rounded one by one. Two kinds are not: single factors that rounding would change
(scores' scales, where the head size is no power of four) stay in float32, and what a rewrite moved
into weights was multiplied with them before they were rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from runtime.files.manifests import ComponentManifest
from runtime.sessions.openvino_session import shared_core
from verify.artifacts import runtime_failures
from verify.layers.graph import ExportedGraph, constants


def half_precision_graph(manifest: ComponentManifest, graph: ExportedGraph) -> onnx.ModelProto:
    """The exported graph as an IR's file has it: what is left is the order of additions.

    Raises:
        ToolError: OpenVINO cannot read the IR.
    """
    with runtime_failures():
        ir = shared_core().read_model(str(manifest.folder / manifest.nets[0].file))
    half, single = in_precision(ir, "f16"), in_precision(ir, "f32")
    rounded = {
        tensor.name
        for tensor in constants(graph.model)
        if tensor.name in half or (tensor.name not in single and np.prod(tensor.dims) > 1)
    }
    model = graph.rounded("float16", rounded)
    _round_with_factors(model, graph, moved_factors(manifest, graph))
    return model


def in_precision(ir: Any, kind: str) -> set[str]:
    """Names of the constants that an IR stores as ``f16`` or ``f32``, as the graph has them."""
    names = set()
    for operation in ir.get_ops():
        if (
            operation.get_type_name() == "Constant"
            and operation.get_element_type().get_type_name() == kind
        ):
            name = operation.get_friendly_name().removesuffix("_compressed")
            names |= {name, f"{name}_output_0"}
    return names


def moved_factors(manifest: ComponentManifest, graph: ExportedGraph) -> dict[str, float]:
    """What the IR moved into weights, by the exported product that they belong to."""
    factors = {}
    for net in manifest.nets:
        for spec in net.outputs:
            if spec.layout is not None and spec.layout.scale != 1.0:
                # Of two components in one IR, the other one's outputs are not in this graph.
                for product in list(graph.products_before(spec.name))[-1:]:
                    factors[product] = spec.layout.scale
    return factors


def _round_with_factors(
    model: onnx.ModelProto, graph: ExportedGraph, factors: Mapping[str, float]
) -> None:
    """Rounds these products' weights and biases as they are once their factor is in them."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    exact = graph.initializers
    for node in model.graph.node:
        # A bias is added to the product itself.
        product = next((name for name in (*node.output, *node.input) if name in factors), None)
        if product is None or node.op_type not in ("MatMul", "Add"):
            continue
        factor = np.float32(factors[product])
        for name in node.input:
            if name in exact:
                scaled = (numpy_helper.to_array(exact[name]) * factor).astype(np.float16)
                back = scaled.astype(np.float32) / factor
                stored[name].CopyFrom(numpy_helper.from_array(back, name))
