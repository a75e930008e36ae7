"""Writes a traced wrapper as one ONNX file: every weight once, under the wrapper's own names.

The graph is traced without weights, then the weights are streamed into the file one by one: the
peak is the model plus one tensor, not three copies of everything.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy
import onnx
import torch
from torch import nn

from configs.errors import ToolError
from export.component import Tensors
from pipeline.manifest import TensorSpec

#: fixed by the TPU compiler's importer: LayerNormalization is native, nothing newer is needed
OPSET = 17
#: weights beyond this go into a sidecar, because an ONNX file cannot exceed 2 GiB
MAXIMUM_INLINE_BYTES = 1_900_000_000

_GRAPH_FIELD = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER_FIELD = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA_FIELD = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
_ELEMENT_TYPES = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}


def write_onnx(
    wrapper: nn.Module,
    tensors: Tensors,
    path: Path,
    *,
    maximum_inline_bytes: int = MAXIMUM_INLINE_BYTES,
) -> None:
    """Traces ``wrapper`` and writes ``path``, and ``<path>.data`` where weights are too large.

    Raises:
        ToolError: the exporter or the checker failed.
        OSError: the disk is full or the folder cannot be written.
    """
    graph_only = _trace(wrapper, tensors)
    weights = _place_weights(graph_only, wrapper)
    _declare(graph_only, tensors)
    _validate(graph_only, weights)
    total = sum(weight.numel() * weight.element_size() for weight in weights.values())
    if total > maximum_inline_bytes:
        _write_with_sidecar(graph_only, weights, path)
    else:
        _write_inline(graph_only, weights, path)


def _trace(wrapper: nn.Module, tensors: Tensors) -> onnx.ModelProto:
    """The graph with every weight as a graph input."""
    stream = io.BytesIO()
    axes = {
        spec.name: {i: name for i, name in enumerate(spec.shape) if isinstance(name, str)}
        for spec in (*tensors.inputs, *tensors.outputs)
    }
    with warnings.catch_warnings():
        # The TorchScript exporter announces its deprecation; the newer exporter's vision graph
        # does not compile for BM1684 (docs/adr/0002-one-decoder-graph.md).
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        try:
            torch.onnx.export(
                wrapper,
                tensors.example_inputs(),
                stream,  # type: ignore[arg-type]
                dynamo=False,
                opset_version=OPSET,
                export_params=False,
                do_constant_folding=False,
                input_names=[spec.name for spec in tensors.inputs],
                output_names=[spec.name for spec in tensors.outputs],
                dynamic_axes=axes,
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ToolError(f"torch.onnx.export failed: {reason}") from error
    return onnx.load_from_string(stream.getvalue())


def _place_weights(model: onnx.ModelProto, wrapper: nn.Module) -> dict[str, torch.Tensor]:
    """Takes weights out of the graph's inputs; equal ones become one. Returns what is left."""
    parameters = {**dict(wrapper.named_parameters()), **dict(wrapper.named_buffers())}
    kept: dict[str, torch.Tensor] = {}
    first: dict[str, str] = {}
    renamed: dict[str, str] = {}
    inputs = []
    for value in model.graph.input:
        weight = parameters.get(value.name)
        if weight is None:
            inputs.append(value)
            continue
        shape = f"{weight.dtype} {tuple(weight.shape)}"
        digest = hashlib.sha256(_bytes(weight)).hexdigest() + shape
        renamed[value.name] = first.setdefault(digest, value.name)
        if renamed[value.name] == value.name:
            kept[value.name] = weight
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return kept


def _declare(model: onnx.ModelProto, tensors: Tensors) -> None:
    """States inputs and outputs as the contract has them, and who made the file."""
    graph = model.graph
    for declared, specs in ((graph.input, tensors.inputs), (graph.output, tensors.outputs)):
        found = {value.name for value in declared}
        if found != {spec.name for spec in specs}:
            raise ToolError(
                f"exported graph has tensors {sorted(found)}, expected "
                f"{sorted(spec.name for spec in specs)}"
            )
        del declared[:]
        declared.extend(_value_info(spec) for spec in specs)
    # An initializer that is an input as well is a default.
    graph.input.extend(_value_info(spec) for spec in tensors.optional)
    model.producer_name = "blip-edge"
    model.producer_version = ""


def _validate(model: onnx.ModelProto, weights: dict[str, torch.Tensor]) -> None:
    """Checks operators, types and shapes, with weights as inputs: no second copy of them."""
    complete = onnx.ModelProto()
    complete.CopyFrom(model)
    declared = {value.name for value in model.graph.input}
    for name, weight in weights.items():
        if name in declared:
            continue
        tensor = _header(name, weight)
        value = onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        complete.graph.input.append(value)
    try:
        onnx.checker.check_model(complete, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ToolError(f"exported graph is not valid ONNX: {reason}") from error


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(spec.name, _ELEMENT_TYPES[spec.dtype], spec.shape)


def _bytes(weight: torch.Tensor) -> memoryview:
    """A weight's content as it lies in the file (little endian, rows first)."""
    content: Any = numpy.ascontiguousarray(weight.detach().numpy())
    return memoryview(content).cast("B")


def _header(name: str, weight: torch.Tensor) -> onnx.TensorProto:
    """A tensor without its content."""
    array = weight.detach().numpy()
    return onnx.TensorProto(
        name=name, dims=array.shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    )


def _write_with_sidecar(
    model: onnx.ModelProto, weights: dict[str, torch.Tensor], path: Path
) -> None:
    sidecar = path.with_name(f"{path.name}.data")
    with sidecar.open("wb") as stream:
        for name, weight in weights.items():
            # Aligned to pages, so that a runtime may map the file.
            stream.write(b"\0" * (-stream.tell() % 4096))
            offset = stream.tell()
            length = stream.write(_bytes(weight))
            tensor = _header(name, weight)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (
                ("location", sidecar.name),
                ("offset", str(offset)),
                ("length", str(length)),
            ):
                tensor.external_data.add(key=key, value=value)
            model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _prefix(field: int, length: int) -> bytes:
    """What stands before a length-delimited protobuf field."""
    return _varint(field << 3 | 2) + _varint(length)


def _pieces(name: str, weight: torch.Tensor) -> tuple[bytes, int]:
    """A weight's initializer field up to its raw content, and that content's length in bytes."""
    content = weight.numel() * weight.element_size()
    head = _header(name, weight).SerializeToString(deterministic=True)
    head += _prefix(_RAW_DATA_FIELD, content)
    return _prefix(_INITIALIZER_FIELD, len(head) + content) + head, content


def _write_inline(model: onnx.ModelProto, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Writes the protobuf message piece by piece, holding one weight at a time."""
    graph = model.graph.SerializeToString(deterministic=True)
    model.ClearField("graph")
    heads = {name: _pieces(name, weight) for name, weight in weights.items()}
    length = len(graph) + sum(len(head) + content for head, content in heads.values())
    with path.open("wb") as stream:
        stream.write(model.SerializeToString(deterministic=True))
        stream.write(_prefix(_GRAPH_FIELD, length))
        stream.write(graph)
        for name, weight in weights.items():
            stream.write(heads[name][0])
            stream.write(_bytes(weight))
