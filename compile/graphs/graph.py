"""Small helpers on ONNX graphs whose weights may lie in an external file."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import numpy_helper

from configs.errors import InputError
from configs.load import shown

#: Weights smaller than this stay inside the ``.onnx`` file, in bytes.
EMBEDDED_LIMIT_BYTES = 1024

Array = NDArray[np.generic]


def externalise(source: Path, graph: Path, weights: str) -> None:
    """Copies an ONNX file as a small graph plus one file of weights beside it.

    Graphs that share the weights can then be derived, saved and loaded at little cost.
    """
    model = load_graph(source, weights=True)
    onnx.save_model(
        model,
        graph,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=weights,
        size_threshold=EMBEDDED_LIMIT_BYTES,
    )


def load_graph(path: Path, *, weights: bool = False) -> onnx.ModelProto:
    """Loads a graph, without its external weights unless they are asked for.

    Raises:
        InputError: the file is no ONNX graph.
    """
    try:
        return onnx.load(path, load_external_data=weights)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        raise InputError(
            f"{shown(path)}: not a readable ONNX file ({error}); run: make export FORCE=1"
        ) from None


def tensor_value(tensor: onnx.TensorProto, folder: Path) -> Array:
    """A tensor's value, read from its external file when it has one."""
    array: Array = numpy_helper.to_array(tensor, base_dir=str(folder))
    return array


def store_weight(model: onnx.ModelProto, folder: Path, name: str, value: Array) -> str:
    """Adds a weight to a graph, large ones in the external file that holds the others.

    Graphs that share the file stay as they are: it is only added to.

    Returns:
        ``name``.
    """
    tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
    external = next((t for t in model.graph.initializer if t.external_data), None)
    if external is not None and value.nbytes >= EMBEDDED_LIMIT_BYTES:
        places = {entry.key: entry.value for entry in external.external_data}
        with (folder / places["location"]).open("ab") as stream:
            offset = stream.tell()
            stream.write(tensor.raw_data)
        length = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, entry in (
            ("location", places["location"]),
            ("offset", str(offset)),
            ("length", str(length)),
        ):
            tensor.external_data.add(key=key, value=entry)
    model.graph.initializer.append(tensor)
    return name


def weights_bytes(model: onnx.ModelProto) -> int:
    """Size of the weights that a graph reads from its external file."""
    return sum(
        int(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    )


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Tensors known before any input: initializers and the values of Constant nodes, by name."""
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    known[node.output[0]] = attribute.t
    return known


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node that makes each tensor."""
    return {name: node for node in model.graph.node for name in node.output}


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Graphs inside a control-flow node."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def uses(model: onnx.ModelProto) -> Counter[str]:
    """How often each tensor is read: by nodes, by subgraphs, or as a graph output."""
    counted: Counter[str] = Counter(output.name for output in model.graph.output)

    def count(nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            counted.update(name for name in node.input if name)
            for graph in subgraphs(node):
                count(graph.node)
                counted.update(output.name for output in graph.output)

    count(model.graph.node)
    return counted


def replace_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Sets the graph's nodes; they must be in topological order."""
    kept = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def remove_unused(model: onnx.ModelProto) -> None:
    """Drops nodes and weights that no graph output depends on."""
    while True:
        used = uses(model)
        kept = [node for node in model.graph.node if any(used[name] for name in node.output)]
        if len(kept) == len(model.graph.node):
            break
        replace_nodes(model, kept)
    weights = [tensor for tensor in model.graph.initializer if used[tensor.name]]
    if len(weights) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(weights)
    # Shapes of intermediate tensors may be stale after a change; every reader infers its own.
    del model.graph.value_info[:]


def input_specs(model: onnx.ModelProto) -> dict[str, tuple[tuple[int | str, ...], str]]:
    """Shape (axis names where dynamic) and numpy dtype name of every graph input."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {v.name: _spec(v) for v in model.graph.input if v.name not in weights}


def output_specs(model: onnx.ModelProto) -> dict[str, tuple[tuple[int | str, ...], str]]:
    """Shape (axis names where dynamic) and numpy dtype name of every graph output."""
    return {v.name: _spec(v) for v in model.graph.output}


def _spec(value: onnx.ValueInfoProto) -> tuple[tuple[int | str, ...], str]:
    tensor = value.type.tensor_type
    shape = tuple(
        d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in tensor.shape.dim
    )
    return shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name


@contextmanager
def saved_beside(model: onnx.ModelProto, graph: Path) -> Iterator[Path]:
    """A changed copy of a graph for a moment, in the folder that holds its weights."""
    path = graph.with_name(f"{graph.stem}.{os.getpid()}.{threading.get_ident()}.onnx")
    onnx.save_model(model, path)
    try:
        yield path
    finally:
        path.unlink()
