"""Fixes a graph's shapes: chips need every shape known, and nothing left that computes shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from compile.graphs.graph import (
    Array,
    constants,
    load_graph,
    producers,
    remove_unused,
    replace_nodes,
    subgraphs,
    tensor_value,
    uses,
)
from configs.errors import ToolError

#: Results of random operators are no constants.
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli"}


def session(path: Path | bytes) -> onnxruntime.InferenceSession:
    """A plain onnxruntime session that computes the graph, or a serialised one, as written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    # Vendor tools run beside; idle threads must not take their cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime raises its own classes, which share no base but Exception.
        reason = " ".join(str(error).split())
        what = path if isinstance(path, Path) else "a changed graph"
        raise ToolError(f"{what}: onnxruntime cannot load this graph ({reason})") from None


def fix_shapes(graph: Path, inputs: Mapping[str, Array], result: Path) -> int:
    """Writes ``result``: ``graph`` with the shapes of ``inputs`` and every constant computed.

    The values of all Shape nodes and the outputs' shapes come from one run of the graph, so nothing
    has to be inferred.

    Args:
        graph: a graph with its weights in an external file of the same folder.
        inputs: arrays of the wanted shapes, for all graph inputs.
        result: path in the folder of ``graph``, whose weights file it shares.

    Returns:
        The number of nodes that were replaced by constants.
    """
    folder = graph.parent
    model = load_graph(graph)
    before = len(model.graph.node)
    # An input that has a default is a constant from here on.
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs_left = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs_left)
    shapes, outputs = _observe(model, inputs, result)
    for value in model.graph.input:
        for dimension, size in zip(
            value.type.tensor_type.shape.dim, inputs[value.name].shape, strict=True
        ):
            dimension.dim_value = size
    _fold(model, shapes, folder)
    _bypass_identities(model)
    remove_unused(model)
    _fix_outputs(model, graph, outputs)
    onnx.save_model(model, result)
    return before - len(model.graph.node)


def _observe(
    model: onnx.ModelProto, inputs: Mapping[str, Array], scratch: Path
) -> tuple[dict[str, Array], list[tuple[int, ...]]]:
    """Values of all Shape and Size nodes, and the shapes of the outputs, for these inputs."""
    wanted = [n.output[0] for n in model.graph.node if n.op_type in {"Shape", "Size"}]
    outputs = [output.name for output in model.graph.output]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in wanted
    )
    onnx.save_model(probe, scratch)
    values = session(scratch).run(outputs + wanted, dict(inputs))
    known = dict(zip(wanted, values[len(outputs) :], strict=True))
    return known, [value.shape for value in values[: len(outputs)]]


def _evaluate(node: onnx.NodeProto, values: dict[str, Array], opset: int) -> list[Array]:
    names = list(dict.fromkeys(name for name in node.input if name))
    graph = onnx.helper.make_graph(
        [node],
        "constant",
        [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in names],
        [
            onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None)
            for n in node.output
        ],
    )
    one = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return [np.asarray(v) for v in ReferenceEvaluator(one).run(None, {n: values[n] for n in names})]


def _fold(model: onnx.ModelProto, shapes: dict[str, Array], folder: Path) -> None:
    """Replaces every node whose inputs are known by its value."""
    opset = next(o.version for o in model.opset_import if o.domain in {"", "ai.onnx"})
    known = constants(model)
    used = uses(model)
    values = dict(shapes)
    computed: dict[str, Array] = dict(shapes)
    kept = []
    for node in model.graph.node:
        names = [name for name in node.input if name]
        if node.op_type == "Constant" or node.output[0] in shapes:
            continue
        foldable = (
            all(name in known or name in values for name in names)
            and node.op_type not in _RANDOM
            and not any(subgraphs(node))
            and any(used[name] for name in node.output)
        )
        if not foldable:
            kept.append(node)
            continue
        for name in names:
            if name not in values:
                values[name] = tensor_value(known[name], folder)
        results = _evaluate(node, values, opset)
        new = dict(zip(node.output, results, strict=True))
        values |= new
        computed |= new
    needed = {name for node in kept for name in node.input} | {o.name for o in model.graph.output}
    weights = {tensor.name for tensor in model.graph.initializer}
    for name in sorted(needed - weights):
        if name in computed:
            tensor = numpy_helper.from_array(np.ascontiguousarray(computed[name]), name)
            model.graph.initializer.append(tensor)
        elif name in known:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(known[name])
            tensor.name = name
            model.graph.initializer.append(tensor)
    replace_nodes(model, kept)


def _bypass_identities(model: onnx.ModelProto) -> None:
    """Connects the readers of an Identity, or of a Cast to the same type, to its input."""
    outputs = {output.name for output in model.graph.output}
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    renamed: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        same = node.op_type == "Identity" or (
            node.op_type == "Cast"
            and types.get(node.input[0]) == next(a.i for a in node.attribute if a.name == "to")
        )
        if same and node.output[0] not in outputs:
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    replace_nodes(model, kept)


def _fix_outputs(model: onnx.ModelProto, graph: Path, shapes: list[tuple[int, ...]]) -> None:
    """Writes the outputs' real shapes into the graph."""
    missing = [o.name for o in model.graph.output if o.name not in producers(model)]
    if missing:
        raise ToolError(f"{graph}: outputs {missing} do not depend on any input")
    for output, shape in zip(model.graph.output, shapes, strict=True):
        del output.type.tensor_type.shape.dim[:]
        for size in shape:
            output.type.tensor_type.shape.dim.add().dim_value = size
