"""Exported graphs taken apart: every tensor an output, every layer fed with others' inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from configs.errors import InputError
from configs.load import shown

Array = NDArray[Any]
Arrays = Mapping[str, Array]

#: Appended to a tensor's name where a layer computes it from somebody else's inputs.
_LOCAL = "@local"
#: ONNX's epsilon where a LayerNormalization names none.
DEFAULT_EPSILON = 1e-5
_FLOAT = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class Site:
    """One tensor of a graph: which layer makes it, where it stands in the order of execution."""

    tensor: str
    node: str
    operator: str
    #: the checkpoint-like module path, e.g. ``layers.1.attention.query``
    layer: str
    index: int


class ExportedGraph:
    """One ONNX file, its tensors in order, and ways to run parts of it."""

    def __init__(self, path: Path, model: onnx.ModelProto | None = None) -> None:
        """Reads the file; ``model`` is what was made of it, if anything was.

        Raises:
            InputError: not a readable ONNX file.
        """
        try:
            self.model = onnx.load(path) if model is None else model
        except (DecodeError, OSError, ValueError) as error:
            raise InputError(
                f"{shown(path)}: not a readable ONNX file ({error}); run: make export FORCE=1"
            ) from None
        self.path = path
        self.inputs = tuple(value.name for value in self.model.graph.input)
        self.outputs = tuple(value.name for value in self.model.graph.output)
        self.initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.nodes = {node.name: node for node in self.model.graph.node}
        self._makers = {name: node for node in self.model.graph.node for name in node.output}
        self._types = _float_types(self.model)
        self.sites = {site.tensor: site for site in self._sites()}

    def _sites(self) -> list[Site]:
        sites: list[Site] = []
        layers: dict[str, str] = {}
        # What no input reaches is a constant, however it is computed.
        reached = set(self.inputs)
        for index, node in enumerate(self.model.graph.node):
            layer = self._layer(node, layers)
            depends = not reached.isdisjoint(node.input)
            for name in node.output:
                layers[name] = layer
                if depends:
                    reached.add(name)
                if depends and name in self._types:
                    sites.append(Site(name, node.name, node.op_type, layer, index))
        return sites

    def _layer(self, node: onnx.NodeProto, layers: Mapping[str, str]) -> str:
        """The module that a node belongs to: by its weight if it has one, else by its scope."""
        scope = node.name.strip("/").split("/")[:-1]
        by_scope = ".".join(scope) or "graph"
        weights = [n for n in node.input if n in self.initializers and "." in n]
        if weights and node.op_type in ("MatMul", "Gemm", "Conv", "LayerNormalization", "Gather"):
            named = weights[0].rsplit(".", 1)[0]
            # One weight may serve two modules (tied embeddings, equal norms): then trust the scope.
            return named if _same_module(named, by_scope) else by_scope
        first = node.input[0] if node.input else ""
        before = layers.get(first)
        if weights and node.op_type == "Add" and before is not None:
            return before
        return by_scope

    @property
    def float_tensors(self) -> tuple[str, ...]:
        """Tensors that hold floating-point values, in the order of execution."""
        return tuple(self.sites)

    @property
    def epsilons(self) -> dict[str, float]:
        """Epsilon of each LayerNormalization by its output."""
        found = {}
        for node in self.model.graph.node:
            if node.op_type == "LayerNormalization":
                given = [a.f for a in node.attribute if a.name == "epsilon"]
                found[node.output[0]] = float(given[0]) if given else DEFAULT_EPSILON
        return found

    def products_before(self, tensor: str) -> Iterator[str]:
        """Tensors from the product with a weight that makes a tensor, that tensor left out."""
        node = self._makers.get(tensor)
        while node is not None:
            if node.output[0] != tensor:
                yield node.output[0]
            if node.op_type == "MatMul":
                return
            node = self._makers.get(node.input[0])

    def products_after(self, tensor: str) -> Iterator[str]:
        """The products that read a tensor, through transpositions only."""
        for node in self.model.graph.node:
            if tensor in node.input:
                if node.op_type == "MatMul":
                    yield node.output[0]
                elif node.op_type == "Transpose":
                    yield from self.products_after(node.output[0])

    def operators(self, layer: str) -> frozenset[str]:
        """Operators of a layer: a device computes some of them together, looked at or not."""
        return frozenset(site.operator for site in self.sites.values() if site.layer == layer)

    def rounded(self, dtype: str, only: Collection[str] | None = None) -> onnx.ModelProto:
        """The graph with its floating-point constants rounded to ``dtype`` and back.

        As OpenVINO's converter rounds them: divisors and what leaves the type's range stay.
        ``only`` names the constants to round; without it, all of them.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        divisors = {node.input[1] for node in model.graph.node if node.op_type == "Div"}
        for tensor in constants(model):
            wanted = only is None or tensor.name in only
            if wanted and tensor.data_type == TensorProto.FLOAT and tensor.name not in divisors:
                array = numpy_helper.to_array(tensor)
                with np.errstate(over="ignore"):
                    back = array.astype(dtype).astype(np.float32)
                kept = np.where(np.isfinite(back) & ((back != 0) | (array == 0)), back, array)
                rounded = kept.astype(np.float32).reshape(array.shape)
                tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
        return model

    def probed(self, names: Collection[str], model: onnx.ModelProto | None = None) -> bytes:
        """The graph with further outputs, serialised."""
        probed = onnx.ModelProto()
        probed.CopyFrom(model or self.model)
        present = {value.name for value in probed.graph.output}
        for name in names:
            if name not in present:
                probed.graph.output.append(self._value(name))
        return bytes(probed.SerializeToString())

    def cut(self, names: Collection[str], model: onnx.ModelProto | None = None) -> bytes:
        """The graph with an input in the place of each named tensor, serialised.

        Its outputs, named by :func:`local`, are what each layer makes of these inputs: errors made
        before them are not in them.
        """
        cut = onnx.ModelProto()
        cut.CopyFrom(model or self.model)
        named = set(names)
        for node in cut.graph.node:
            for index, name in enumerate(node.output):
                if name in named:
                    node.output[index] = local(name)
        del cut.graph.output[:]
        for name in names:
            cut.graph.input.append(self._value(name))
            value = self._value(name)
            value.name = local(name)
            cut.graph.output.append(value)
        return bytes(cut.SerializeToString())

    def up_to(self, tensor: str, model: onnx.ModelProto | None = None) -> onnx.ModelProto:
        """The part of the graph that makes a tensor, its only output."""
        part = onnx.ModelProto()
        part.CopyFrom(model or self.model)
        needed, nodes = {tensor}, list[onnx.NodeProto]()
        for node in reversed(part.graph.node):
            if not needed.isdisjoint(node.output):
                needed |= set(node.input)
                nodes.insert(0, node)
        inputs = [value for value in part.graph.input if value.name in needed]
        weights = [weight for weight in part.graph.initializer if weight.name in needed]
        outputs = [self._value(tensor)]
        made = helper.make_graph(nodes, part.graph.name, inputs, outputs, weights)
        part.graph.CopyFrom(made)
        return part

    def _value(self, name: str) -> onnx.ValueInfoProto:
        # Without a shape: it is dynamic, and asking for it would only bring surprises.
        value = helper.make_empty_tensor_value_info(name)
        value.type.tensor_type.elem_type = self._types[name]
        return value


def local(name: str) -> str:
    """Name of a tensor as its layer makes it from given inputs."""
    return name + _LOCAL


def run(serialised: bytes, feeds: Arrays) -> dict[str, Array]:
    """Runs a graph under onnxruntime without its optimisations; returns all outputs.

    Raises:
        InputError: onnxruntime cannot load or run the graph.
    """
    return Runner(serialised)(feeds)


class Runner:
    """A graph under onnxruntime, node by node as it stands: no fusion moves a rounding."""

    def __init__(self, serialised: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        # Waiting threads give way: many graphs are run for a moment each.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                serialised, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # onnxruntime raises exceptions of its own bindings.
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"onnxruntime cannot load the graph: {reason}") from None
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, feeds: Arrays) -> dict[str, Array]:
        """Runs it; arrays that it does not take are ignored."""
        taken = {name: np.ascontiguousarray(feeds[name]) for name in self._inputs}
        try:
            outputs = self._session.run(self._outputs, taken)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"onnxruntime cannot run the graph: {reason}") from None
        return dict(zip(self._outputs, outputs, strict=True))


def _same_module(weight: str, scope: str) -> bool:
    """Whether a weight's module and a node's scope name the same layer number."""
    return _layer_number(weight) == _layer_number(scope)


def _layer_number(name: str) -> str:
    parts = name.split(".")
    return parts[1] if parts[0] == "layers" and len(parts) > 1 else ""


def constants(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Initializers and the tensors of Constant nodes; these are given the name they are read by."""
    found = list(model.graph.initializer)
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                # Named as what it makes: the exporter leaves the name empty.
                attribute.t.name = node.output[0]
                found.append(attribute.t)
    return found


def _float_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every floating-point tensor."""
    try:
        inferred = shape_inference.infer_shapes(model).graph
    except Exception:
        inferred = model.graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return {name: kind for name, kind in types.items() if kind in _FLOAT}
