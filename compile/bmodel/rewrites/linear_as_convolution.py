"""Linear layers -> 1 x 1 convolutions over ``[batch, hidden, tokens, 1]``, docs/adr/0013."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compile.bmodel.rewrites import Rewritten
from compile.graphs.graph import remove_unused, replace_nodes, store_weight
from compile.graphs.patterns import HEADS_FIRST, GraphIndex, Linear

REASON = (
    "BM1684's INT8 matrix products are wrong for many rows, and exist only where the first axis "
    "counts them; its INT8 convolutions are right, and the reorderings around them move integers"
)
#: Channels that one operator may have: BM1684's registers count them in twelve bits.
MAXIMUM_CHANNELS = 4095
#: Computed value by value, so in any layout.
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Erf", "Tanh", "Relu", "Sigmoid"}


def rewrite(model: onnx.ModelProto, folder: Path) -> Rewritten:
    """Changes every linear layer, and what lies between linear layers and attention products."""
    converted = _Converted(model, folder)
    replace_nodes(model, converted.nodes)
    remove_unused(model)
    return Rewritten(converted.sites)


class _Converted:
    """The graph with its linear layers as convolutions.

    A tensor's channels are one or several tensors ``[batch, part of hidden, tokens, 1]``: several
    where there are more channels than an operator may have.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._index = GraphIndex(model, folder)
        self._ranks = _ranks(model)
        self._outputs = {output.name for output in model.graph.output}
        self._channels: dict[str, list[str]] = {}
        #: how many channels each tensor has that is made as channels
        self._widths: dict[str, int] = {}
        #: those of them that nothing has asked for as tokens yet
        self._pending: set[str] = set()
        self._heads: dict[str, str] = {}
        self._constants: dict[tuple[int, ...], str] = {}
        #: nodes per part that wait to be emitted one part after the other
        self._waiting: dict[int, list[onnx.NodeProto]] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.sites = 0
        linear = {one.product.output[0]: one for one in self._index.linear_layers()}
        biases = {one.addition.output[0] for one in linear.values() if one.addition is not None}
        for node in list(model.graph.node):
            name = node.output[0]
            if name in linear and self._linear(linear[name]):
                continue
            if name not in self._channels or name not in biases:
                self._other(node)
        for name in sorted(self._outputs):
            self._need_tokens(name)
        self._emit()

    def _emit(self, *nodes: onnx.NodeProto) -> None:
        """Adds nodes behind those that wait.

        The compiler finds a GELU by the order of its nodes: those of several parts must not mix.
        """
        for number in sorted(self._waiting):
            self.nodes += self._waiting[number]
        self._waiting.clear()
        self.nodes += nodes

    def _linear(self, layer: Linear) -> bool:
        """Emits the convolutions of one layer; False where it has to stay a product."""
        rank = self._ranks.get(layer.source, 0)
        if rank not in {2, 3}:
            return False
        sources = self._need_channels(layer.source, layer.inputs)
        if not sources:
            return False
        weight = self._index.value(layer.weight).astype(np.float32)
        weight = weight if layer.transposed else weight.T
        bias = None if layer.bias is None else self._index.value(layer.bias).astype(np.float32)
        scale = self._score_scale(layer.result)
        if scale is not None:
            weight, bias = weight * scale, None if bias is None else bias * scale
        made = []
        edges = _parts(layer.outputs)
        for number, (start, end) in enumerate(pairwise(edges)):
            suffix = f"_{number}" if len(edges) > 2 else ""
            part = None if bias is None else bias[start:end]
            name = f"{layer.result}_channels{suffix}"
            self._convolution(sources, weight[start:end], part, layer.weight + suffix, name)
            made.append(name)
        self._channels[layer.result] = made
        self._widths[layer.result] = layer.outputs
        self._pending.add(layer.result)
        self.sites += 1
        return True

    def _convolution(
        self,
        sources: list[str],
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        stored: str,
        result: str,
    ) -> None:
        """``result = weight x sources + bias``; one convolution per source, added up."""
        widths = _parts(weight.shape[1])
        summed = None
        for number, (source, (start, end)) in enumerate(
            zip(sources, pairwise(widths), strict=True)
        ):
            last = number == len(sources) - 1
            name = f"{stored}.kernel" if len(sources) == 1 else f"{stored}.kernel_{number}"
            kernel = np.ascontiguousarray(weight[:, start:end, None, None])
            inputs = [source, store_weight(self._model, self._folder, name, kernel)]
            if bias is not None and number == 0:
                inputs.append(store_weight(self._model, self._folder, f"{stored}.offset", bias))
            made = result if len(sources) == 1 else f"{result}_of_{number}"
            self._emit(helper.make_node("Conv", inputs, [made], name=made, kernel_shape=[1, 1]))
            if summed is not None:
                total = result if last else f"{result}_up_to_{number}"
                self._emit(helper.make_node("Add", [summed, made], [total], name=total))
                made = total
            summed = made

    def _score_scale(self, result: str) -> np.float32 | None:
        """The factor on queries in order of heads, which then becomes part of their layer."""
        split = self._index.only_reader(result)
        if split is None or self._index.head_size(split) is None:
            return None
        order = self._index.only_reader(split.output[0])
        factor = None if order is None else self._index.only_reader(order.output[0])
        if factor is None or factor.op_type != "Mul" or factor.output[0] in self._outputs:
            return None
        other = [name for name in factor.input if name != order.output[0]]  # type: ignore[union-attr]
        if len(other) != 1 or not self._index.is_scalar(other[0]):
            return None
        value = np.float32(self._index.value(other[0]).reshape(()))
        factor.op_type = "Identity"
        factor.input[:] = [order.output[0]]  # type: ignore[union-attr]
        return value

    def _other(self, node: onnx.NodeProto) -> None:
        """Keeps a node, in the layout of channels where it can be."""
        if node.op_type in _ELEMENTWISE and self._elementwise(node):
            return
        if node.op_type == "Reshape" and self._split_heads(node):
            return
        if node.op_type == "Transpose" and node.input[0] in self._heads:
            self._order_heads(node)
            return
        if not node.input:
            # Constants may come before everything, and then tear no chain apart.
            self.nodes.insert(0, node)
            return
        for name in node.input:
            self._need_tokens(name)
        self._emit(node)

    def _elementwise(self, node: onnx.NodeProto) -> bool:
        """Emits a node on channels, if all it takes comes as channels or is one number."""
        taken = list(dict.fromkeys(n for n in node.input if not self._index.is_scalar(n)))
        if not taken or not all(name in self._widths for name in taken):
            return False
        if len({(self._widths[name], self._ranks.get(name)) for name in taken}) > 1:
            return False
        result = node.output[0]
        made = []
        for number in range(len(self._channels[taken[0]])):
            part = onnx.NodeProto()
            part.CopyFrom(node)
            suffix = f"_{number}" if len(self._channels[taken[0]]) > 1 else ""
            part.output[0] = f"{result}_channels{suffix}"
            part.name = part.output[0]
            for index, name in enumerate(node.input):
                if name in self._channels:
                    part.input[index] = self._channels[name][number]
            self._waiting.setdefault(number, []).append(part)
            made.append(part.output[0])
        self._channels[result] = made
        self._widths[result] = self._widths[taken[0]]
        self._pending.add(result)
        return True

    def _split_heads(self, node: onnx.NodeProto) -> bool:
        """``[batch, hidden, tokens, 1]`` -> ``[batch, heads, size, tokens]``."""
        size = self._index.head_size(node)
        width = self._widths.get(node.input[0])
        if size is None or width is None or len(self._channels[node.input[0]]) > 1:
            return False
        name = f"{node.output[0]}_heads"
        self._reshape(self._channels[node.input[0]][0], [0, width // size, size, -1], name)
        self._heads[node.output[0]] = name
        return True

    def _order_heads(self, node: onnx.NodeProto) -> None:
        heads = self._heads[node.input[0]]
        if self._index.permutation(node) == HEADS_FIRST:
            self._transpose(heads, (0, 1, 3, 2), node.output[0])
        else:
            # Keys lie as a product takes them.
            self._emit(helper.make_node("Identity", [heads], [node.output[0]]))

    def _need_channels(self, name: str, width: int) -> list[str]:
        """The channels of a tensor; empty where it has too many and comes as tokens."""
        if name in self._channels:
            return self._channels[name]
        if width > MAXIMUM_CHANNELS:
            return []
        made = f"{name}.channels"
        joined = self._index.joined_heads(name)
        if joined is not None:
            self._need_tokens(joined)
            self._transpose(joined, (0, 1, 3, 2), f"{name}.heads")
            self._reshape(f"{name}.heads", [0, width, -1, 1], made)
        else:
            self._need_tokens(name)
            if self._ranks[name] == 3:
                self._transpose(name, (0, 2, 1), f"{name}.transposed")
                self._reshape(f"{name}.transposed", [0, width, -1, 1], made)
            else:
                self._reshape(name, [0, width, 1, 1], made)
        self._channels[name] = [made]
        return [made]

    def _need_tokens(self, name: str) -> None:
        """Emits a tensor as ``[batch, tokens, hidden]`` or ``[batch, hidden]``, once."""
        if name not in self._pending:
            return
        self._pending.remove(name)
        parts = []
        channels = self._channels[name]
        for number, part in enumerate(channels):
            result = name if len(channels) == 1 else f"{name}_tokens_{number}"
            if self._ranks[name] == 3:
                self._reshape(part, [0, 0, -1], f"{part}.flat")
                self._transpose(f"{part}.flat", (0, 2, 1), result)
            else:
                self._reshape(part, [0, -1], result)
            parts.append(result)
        if len(parts) > 1:
            self._emit(helper.make_node("Concat", parts, [name], name=name, axis=-1))

    def _reshape(self, source: str, shape: list[int], result: str) -> None:
        key = tuple(shape)
        if key not in self._constants:
            name = "channels_shape_" + "_".join(str(size) for size in shape)
            value = numpy_helper.from_array(np.array(shape, dtype=np.int64), name)
            self._model.graph.initializer.append(value)
            self._constants[key] = name
        inputs = [source, self._constants[key]]
        self._emit(helper.make_node("Reshape", inputs, [result], name=result))

    def _transpose(self, source: str, order: tuple[int, ...], result: str) -> None:
        node = helper.make_node("Transpose", [source], [result], name=result, perm=order)
        self._emit(node)


def _parts(channels: int) -> list[int]:
    """Edges of as few, nearly equal parts as operators can take."""
    count = -(-channels // MAXIMUM_CHANNELS)
    return [channels * number // count for number in range(count + 1)]


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Number of axes of every tensor, by inference."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
