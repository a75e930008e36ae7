"""An IR of integers read back: its own constants and quantisers in the place of exported ones.

An integer IR differs from the exported graph where it was meant to: rounded weights, rounded
activations, and scales moved between the two (SmoothQuant). These are judged for themselves, each
by its own step. What is left must then be exact: the exported graph with the IR's constants and
with its quantisers' own outputs gives the IR's tensors to float32's accuracy, so that a fault of
any other kind is seen as sharply as in a float IR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from configs.tolerances import load_tolerances
from runtime.files.manifests import ComponentManifest
from runtime.sessions.openvino_session import shared_core
from verify.artifacts import runtime_failures
from verify.layers.graph import Array, ExportedGraph
from verify.layers.half_precision_ir import in_precision, moved_factors

#: Operators whose first constant operand holds a layer's weights, by their names in an IR.
_WITH_WEIGHTS = ("MatMul", "Gather", "Convolution")
_AFTER_A_PRODUCT = (*_WITH_WEIGHTS, "Multiply")
_QUANTISED = ".quantised"
_SMOOTHED = ".smoothed"


@dataclass(frozen=True)
class Folded:
    """A constant subgraph's value, and the size of one step of its integers (None: floats)."""

    value: Array
    step: Array | None
    #: how many values its integers can have
    levels: int = 0


@dataclass
class IntegerIr:
    """One IR beside the exported graph.

    ``graph`` is the exported graph with the IR's own constants; ``quantisers`` names the tensors
    added to it, by the IR's node that makes each.
    """

    graph: ExportedGraph
    quantisers: dict[str, str] = field(default_factory=dict)
    #: constants that are not what their exported ones round to: (layer, what)
    faults: list[tuple[str, str]] = field(default_factory=list)
    #: largest distance of a weight from its exported one, in steps, by constant
    steps: dict[str, float] = field(default_factory=dict)
    #: largest step, in what its channel or group of weights needs, by constant
    coarseness: dict[str, float] = field(default_factory=dict)


def read_integer_ir(manifest: ComponentManifest, graph: ExportedGraph) -> IntegerIr:
    """Reads an IR's integers.

    Raises:
        ToolError: OpenVINO cannot read the IR.
    """
    with runtime_failures():
        model = shared_core().read_model(str(manifest.folder / manifest.nets[0].file))
    return _Reader(graph, model, moved_factors(manifest, graph)).read()


class _Reader:
    def __init__(self, graph: ExportedGraph, ir: Any, factors: Mapping[str, float]) -> None:
        self._graph = graph
        self._limit = load_tolerances().limit
        self._factors = factors
        self._model = graph.rounded("float16", in_precision(ir, "f16"))
        self._constants = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._found = IntegerIr(graph)
        self._added: dict[str, onnx.NodeProto] = {}
        self._makers: dict[str, Any] = {}
        for operation in ir.get_ordered_ops():
            if operation.get_type_name() in ("Constant", "Result", "Parameter"):
                continue
            for port in operation.outputs():
                for name in port.get_names():
                    self._makers[name] = operation

    def read(self) -> IntegerIr:
        nodes = list(self._model.graph.node)
        for node in nodes:
            maker = self._makers.get(node.output[0]) if node.output else None
            if maker is not None:
                self._quantised_inputs(node, maker)
                self._weights(node, maker)
        ordered = []
        for node in nodes:
            ordered.append(node)
            ordered += [
                added
                for name in node.output
                for key, added in self._added.items()
                if key.startswith(f"{name}|")
            ]
        of_inputs = [
            added for key, added in self._added.items() if key.split("|")[0] in self._graph.inputs
        ]
        del self._model.graph.node[:]
        self._model.graph.node.extend([*of_inputs, *ordered])
        # Otherwise the graph would hold every weight twice, and may not be larger than 2 GB.
        used = {name for node in self._model.graph.node for name in node.input}
        kept = [tensor for tensor in self._model.graph.initializer if tensor.name in used]
        del self._model.graph.initializer[:]
        self._model.graph.initializer.extend(kept)
        self._found.graph = ExportedGraph(self._graph.path, self._model)
        return self._found

    def _quantised_inputs(self, node: onnx.NodeProto, maker: Any) -> None:
        """Puts the IR's quantisers between a tensor and the node that reads it."""
        for port in (_product(maker) or maker).inputs():
            quantiser = port.get_source_output().get_node()
            if quantiser.get_type_name() != "FakeQuantize":
                continue
            source = quantiser.input(0).get_source_output()
            factor = None
            if not source.get_names() and source.get_node().get_type_name() == "Multiply":
                smoothing = source.get_node()
                factor = folded(smoothing.input(1).get_source_output().get_node())
                source = smoothing.input(0).get_source_output()
            for index, tensor in enumerate(node.input):
                # Of two components in one IR, the second one's input is a tensor of the first.
                passed = tensor in self._graph.inputs and tensor not in self._makers
                if tensor in source.get_names() or (passed and index == port.get_index()):
                    scale = None if factor is None else factor.value
                    node.input[index] = self._quantiser(tensor, quantiser, scale, node)

    def _quantiser(
        self, tensor: str, quantiser: Any, factor: Array | None, reader: onnx.NodeProto
    ) -> str:
        name = quantiser.get_friendly_name()
        made = f"{name}{_QUANTISED}"
        if made in self._found.quantisers.values():
            return made
        site = self._graph.sites.get(tensor) or self._graph.sites[reader.output[0]]
        scope = f"/{site.layer}"
        before = tensor
        if factor is not None:
            before = f"{name}{_SMOOTHED}"
            constant = f"{before}.factor"
            self._model.graph.initializer.append(
                numpy_helper.from_array(factor.astype(np.float32), constant)
            )
            smoothing = helper.make_node("Mul", [tensor, constant], [before])
            smoothing.name = f"{scope}/{name.replace('/', '.')}/Smoothing"
            self._added[f"{tensor}|{before}"] = smoothing
        # Its rounding is what the stretch from here to its output introduces.
        identity = helper.make_node("Identity", [before], [made])
        identity.name = f"{scope}/FakeQuantize"
        self._added[f"{tensor}|{made}"] = identity
        self._found.quantisers[name] = made
        if (moved := _moved(quantiser)) > self._limit("integer_range_steps"):
            what = f"its integers stand for values {moved:.1f} steps from those they were made of"
            self._found.faults.append((site.layer, what))
        return made

    def _weights(self, node: onnx.NodeProto, maker: Any) -> None:
        """Puts the IR's own weights into a node, after a look at their distance in steps."""
        names = [name for name in node.input if name in self._constants]
        operation = _product(maker)
        if not names or operation is None:
            return
        side = 0 if operation.get_type_name() == "Gather" else 1
        found = folded(operation.input(side).get_source_output().get_node())
        if found is None or found.step is None:
            return
        value, step = found.value, found.step
        stored_so = any(a.name == "transB" and a.i for a in node.attribute)
        transposed = operation.get_type_name() == "MatMul" and (
            bool(operation.get_attributes()["transpose_b"]) != stored_so
        )
        if transposed:
            value, step = np.swapaxes(value, -1, -2), np.swapaxes(step, -1, -2)
        factor = self._factors.get(node.output[0], 1.0)
        value, step = value / factor, step / abs(factor)
        exported = numpy_helper.to_array(self._graph.initializers[names[0]])
        layer = names[0].rsplit(".", 1)[0]
        if value.shape != exported.shape:
            what = f"shape {list(value.shape)} instead of {list(exported.shape)}"
            self._found.faults.append((layer, what))
            return
        smoothed = self._smoothing(node)
        wanted = exported if smoothed is None else exported / smoothed
        off = np.abs(value - wanted) / np.where(step > 0, step, 1.0)
        self._found.steps[names[0]] = float(off.max())
        most = self._limit("integer_weight_steps")
        if not off.max() <= most:
            what = (
                f"{float(np.mean(off > most)):.1%} of its integers are not the exported "
                f"weights rounded, by up to {off.max():.1f} steps"
            )
            self._found.faults.append((layer, what))
        convolution = operation.get_type_name() == "Convolution"
        # A table that is also a head has a step per row or per column, as it is read.
        axes = (0,) if convolution else (0, -1)
        coarse = min(coarseness(wanted, step, found.levels, axis) for axis in axes)
        self._found.coarseness[names[0]] = coarse
        if not coarse <= self._limit(
            "integer_step_size_of_convolutions" if convolution else "integer_step_size"
        ):
            what = f"its integers use a step {coarse:.1f} times as large as its channel needs"
            self._found.faults.append((layer, what))
        own = f"{layer}.{len(self._model.graph.initializer)}"
        self._model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), own))
        for index, name in enumerate(node.input):
            if name == names[0]:
                node.input[index] = own

    def _smoothing(self, node: onnx.NodeProto) -> Array | None:
        """What a product's input was multiplied with, per row of its weights: ``[inputs, 1]``."""
        before = node.input[0].removesuffix(_QUANTISED) + _SMOOTHED
        for tensor in self._model.graph.initializer:
            if tensor.name == f"{before}.factor":
                factor: Array = numpy_helper.to_array(tensor)
                return factor.reshape(-1, 1)
        return None


def _product(maker: Any) -> Any | None:
    """The operator that holds the weights of what ``maker`` makes.

    Itself, or what stands before it without a name of its own: a bias and factors come after.
    """
    found = maker
    while found.get_type_name() not in _WITH_WEIGHTS:
        if found.get_type_name() not in ("Add", "Multiply"):
            return None
        unnamed = [
            port.get_source_output().get_node()
            for port in found.inputs()
            if not port.get_source_output().get_names()
        ]
        following = [node for node in unnamed if node.get_type_name() in _AFTER_A_PRODUCT]
        if not following:
            return None
        found = following[0]
    return found


def folded(node: Any) -> Folded | None:
    """Value of a constant subgraph; None if something in it is no constant."""
    kind = node.get_type_name()
    if kind == "Constant":
        value = np.array(node.get_data())
        kind_of_number = node.get_element_type()
        integers = kind_of_number.is_integral()
        if kind_of_number.get_type_name() in ("u4", "i4"):
            value = _nibbles(value, signed=kind_of_number.get_type_name() == "i4")
            value = value.reshape(list(node.get_output_shape(0)))
        value = value.astype(np.float32)
        levels = 1 << int(kind_of_number.bitwidth) if integers else 0
        return Folded(value, np.ones_like(value) if integers else None, levels)
    operands = [folded(port.get_source_output().get_node()) for port in node.inputs()]
    if not operands or any(operand is None for operand in operands):
        return None
    first, *others = [operand for operand in operands if operand is not None]
    rule = {
        "Convert": lambda: first,
        "Multiply": lambda: _scaled(first, others[0]),
        "Subtract": lambda: Folded(first.value - others[0].value, first.step, first.levels),
        "Reshape": lambda: _arranged(first, lambda a: a.reshape(node.get_output_shape(0))),
        "Transpose": lambda: _arranged(
            first, lambda a: a.transpose(others[0].value.astype(int).reshape(-1))
        ),
    }.get(kind)
    return rule() if rule else None


def _nibbles(packed: Array, *, signed: bool) -> Array:
    """Numbers of four bits, two to a byte, the lower half first."""
    data = packed.reshape(-1).view(np.uint8)
    values = np.stack([data & 15, data >> 4], axis=-1).astype(np.int16)
    return (values ^ 8) - 8 if signed else values


def _scaled(first: Folded, second: Folded) -> Folded:
    if first.step is None and second.step is not None:
        first, second = second, first
    step = None if first.step is None else first.step * np.abs(second.value)
    return Folded(first.value * second.value, step, first.levels)


def _moved(quantiser: Any) -> float:
    """How far a quantiser moves values, in its steps: its two ranges must be one."""
    limits = [folded(quantiser.input(i).get_source_output().get_node()) for i in range(1, 5)]
    if any(limit is None for limit in limits):
        return 0.0
    low, high, new_low, new_high = (limit.value for limit in limits if limit is not None)
    step = (high - low) / (quantiser.get_attributes()["levels"] - 1)
    off = np.maximum(np.abs(new_low - low), np.abs(new_high - high))
    return float(np.max(off / np.where(step > 0, step, 1.0)))


def coarseness(wanted: Array, step: Array, levels: int, outputs: int) -> float:
    """The largest step, as a multiple of the one that reaches the largest weight of its own group.

    A group are neighbours of one output channel that share a step: a whole channel, or a part of
    it. One step for a whole tensor is far too large for its quieter channels.

    Args:
        wanted: the weights before rounding.
        step: size of one step, of the same shape.
        levels: how many values an integer can have.
        outputs: the axis that counts channels.
    """
    rows = wanted.shape[outputs]
    values = np.abs(np.moveaxis(wanted, outputs, 0).reshape(rows, -1)).astype(np.float64)
    steps = np.moveaxis(np.broadcast_to(step, wanted.shape), outputs, 0).reshape(rows, -1)
    starts = np.ones(values.shape, dtype=bool)
    starts[:, 1:] = steps[:, 1:] != steps[:, :-1]
    first = np.flatnonzero(starts)
    needed = np.maximum.reduceat(values.ravel(), first) / ((levels - 1) / 2)
    # A group of zeros needs none.
    real = needed > np.finfo(np.float16).tiny
    return float((steps.ravel()[first][real] / needed[real]).max(initial=0.0))


def _arranged(given: Folded, arrange: Any) -> Folded:
    step = None if given.step is None else arrange(given.step)
    return Folded(arrange(given.value), step, given.levels)
