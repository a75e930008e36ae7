"""Whether half precision can hold what a component computes, as onnxruntime sees it in float32."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import onnx
from onnx import helper

from compile.backend import Job, Source
from compile.graphs.graph import load_graph
from compile.graphs.parity import real_inputs
from compile.graphs.static_graph import session
from configs.precisions import PRECISIONS
from configs.schema import SophonTarget

#: Where f16 ends.
LARGEST_HALF = 65504.0
#: Operators whose results are larger than what goes in.
_GROWING = {"Add", "Conv", "Div", "Gemm", "LayerNormalization", "MatMul", "Mul", "Pow", "Sub"}


def beyond_half(job: Job, source: Source) -> str | None:
    """Which layer leaves f16's range on the pictures and texts of the export, and the cure.

    None where the component's arithmetic is not f16, or all of it fits. OpenVINO's arithmetic is
    the device's: f16 on a GPU or NPU.
    """
    precision = job.built_as
    if PRECISIONS[precision].arithmetic != "f16":
        return None
    reference = source.location.file(".reference.npz")
    largest = largest_magnitudes(source.onnx, reference, source.digests[source.onnx.name])
    layer, magnitude = max(largest.items(), key=lambda item: item[1], default=("", 0.0))
    if magnitude <= LARGEST_HALF:
        return None
    if isinstance(job.target, SophonTarget):
        key = "precisions" if precision == job.precision else f"components.{job.precision}"
        cure = f"build {precision.replace('f16', 'bf16')} (targets.{job.target.name}.{key})"
    else:
        cure = "run it on the CPU, or with --mode exact on a GPU"
    return f"{job.name}: {layer} reaches {magnitude:.1e}, f16 ends at {LARGEST_HALF:.0f}: {cure}"


@cache
def largest_magnitudes(graph: Path, reference: Path, digest: str) -> dict[str, float]:  # noqa: ARG001 - another file of that name
    """The largest magnitude that each layer computes in float32 on recorded inputs."""
    model = load_graph(graph)
    outputs = {}
    for node in list(model.graph.node):
        if node.op_type not in _GROWING:
            continue
        layer = node.name.strip("/").rpartition("/")[0].replace("/", ".") or node.name
        for operator in ("ReduceMax", "ReduceMin"):
            name = f"{operator}/{node.output[0]}"
            outputs[name] = layer
            model.graph.node.append(
                helper.make_node(operator, [node.output[0]], [name], keepdims=0)
            )
            model.graph.output.append(
                helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [])
            )
    probed = session(model.SerializeToString())
    names = [value.name for value in probed.get_inputs()]
    largest = dict.fromkeys(outputs.values(), 0.0)
    for case in real_inputs(reference):
        found = probed.run(list(outputs), {name: case[name] for name in names})
        for name, value in zip(outputs, found, strict=True):
            largest[outputs[name]] = max(largest[outputs[name]], abs(float(value)))
    return largest
