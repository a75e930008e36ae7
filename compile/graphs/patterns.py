"""What rewrites look for in the exported graphs: linear layers, and reshapes around attention."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from compile.graphs.graph import constants, producers, tensor_value, uses

#: ``[batch, tokens, heads, size]`` -> ``[batch, heads, tokens, size]``, and its own inverse
HEADS_FIRST = (0, 2, 1, 3)
#: ``[batch, tokens, heads, size]`` -> ``[batch, heads, size, tokens]``: keys for a product
HEADS_TRANSPOSED = (0, 2, 3, 1)


@dataclass(frozen=True)
class Linear:
    """A product with a constant matrix and the bias after it."""

    #: the product's node: MatMul, or Gemm with its bias inside
    product: onnx.NodeProto
    #: the addition of the bias, where that is a node of its own
    addition: onnx.NodeProto | None
    source: str
    result: str
    weight: str
    bias: str | None
    inputs: int
    outputs: int
    #: whether the matrix is stored as ``[outputs, inputs]``
    transposed: bool


@dataclass
class GraphIndex:
    """Who makes and who reads each tensor of a graph, and which of them are constants."""

    model: onnx.ModelProto
    folder: Path
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.constants = constants(self.model)
        self.made_by = producers(self.model)
        self._used = uses(self.model)
        for node in self.model.graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def value(self, name: str) -> NDArray[np.generic]:
        """A constant's value."""
        return tensor_value(self.constants[name], self.folder)

    def is_scalar(self, name: str) -> bool:
        """Whether a tensor is a constant of one element."""
        return name in self.constants and math.prod(self.constants[name].dims) == 1

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The node that alone reads a tensor, once; None too for an output of the graph."""
        return self.readers[name][0] if self._used[name] == 1 and name in self.readers else None

    def is_read_by(self, name: str, operator: str) -> bool:
        """Whether a tensor is read, and by nodes of one type alone."""
        found = self.readers.get(name, [])
        return (
            bool(found)
            and all(node.op_type == operator for node in found)
            and self._used[name] == len(found)
        )

    def linear_layers(self) -> Iterator[Linear]:
        """Every product of a tensor with a constant matrix, in order."""
        for node in self.model.graph.node:
            weight = self.constants.get(node.input[1]) if len(node.input) > 1 else None
            if weight is None or len(weight.dims) != 2 or node.input[0] in self.constants:
                continue
            if node.op_type == "MatMul":
                yield self._linear(node, weight)
            elif node.op_type == "Gemm" and _is_plain(node):
                transposed = bool(_attribute(node, "transB", 0))
                inner, outer = (int(size) for size in weight.dims)
                yield Linear(
                    product=node,
                    addition=None,
                    source=node.input[0],
                    result=node.output[0],
                    weight=node.input[1],
                    bias=node.input[2] if len(node.input) > 2 and node.input[2] else None,
                    inputs=outer if transposed else inner,
                    outputs=inner if transposed else outer,
                    transposed=transposed,
                )

    def _linear(self, product: onnx.NodeProto, weight: onnx.TensorProto) -> Linear:
        addition, bias = self.only_reader(product.output[0]), None
        if addition is not None and addition.op_type == "Add":
            other = [name for name in addition.input if name != product.output[0]]
            known = self.constants.get(other[0]) if len(other) == 1 else None
            if known is not None and list(known.dims) == [weight.dims[1]]:
                bias = other[0]
        addition = addition if bias else None
        return Linear(
            product=product,
            addition=addition,
            source=product.input[0],
            result=addition.output[0] if addition is not None else product.output[0],
            weight=product.input[1],
            bias=bias,
            inputs=int(weight.dims[0]),
            outputs=int(weight.dims[1]),
            transposed=False,
        )

    def permutation(self, node: onnx.NodeProto | None) -> tuple[int, ...]:
        """The order of axes of a Transpose; empty for any other node."""
        if node is None or node.op_type != "Transpose":
            return ()
        return next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())

    def head_size(self, node: onnx.NodeProto) -> int | None:
        """Values per head where a Reshape splits ``[batch, tokens, hidden]`` for attention alone.

        Attention alone: its result is only brought into the order of heads, for any product.
        """
        if node.op_type != "Reshape" or node.input[1] not in self.constants:
            return None
        shape = self.value(node.input[1]).tolist()
        if len(shape) != 4 or shape[3] < 1 or not self.is_read_by(node.output[0], "Transpose"):
            return None
        orders = {self.permutation(reader) for reader in self.readers[node.output[0]]}
        return int(shape[3]) if orders <= {HEADS_FIRST, HEADS_TRANSPOSED} else None

    def joined_heads(self, name: str) -> str | None:
        """The tensor ``[batch, heads, tokens, size]`` that one of joined heads is made of."""
        reshape = self.made_by.get(name)
        if reshape is None or reshape.op_type != "Reshape":
            return None
        if reshape.input[1] not in self.constants or self.value(reshape.input[1]).size != 3:
            return None
        order = self.made_by.get(reshape.input[0])
        if order is None or self.permutation(order) != HEADS_FIRST:
            return None
        return str(order.input[0])


def _attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def _is_plain(gemm: onnx.NodeProto) -> bool:
    """Whether a Gemm is a product and a bias, without factors."""
    factors = (_attribute(gemm, "alpha", 1.0), _attribute(gemm, "beta", 1.0))
    return factors == (1.0, 1.0) and not _attribute(gemm, "transA", 0)
