"""A net with chosen operations on 8-bit integers, simulated under onnxruntime.

Inputs, weights and outputs of an integer operation are rounded to its steps and kept as float32.
That is what the chip computes up to the rounding of the scales themselves, at the speed of a float
net, so that dozens of choices can be measured. What a finished BModel answers is checked afterwards
on the vendor's bit-level simulator (verify).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compile.bmodel.integers.mlir import Operation
from compile.bmodel.integers.thresholds import Range
from compile.graphs.graph import (
    constants,
    load_graph,
    producers,
    replace_nodes,
    saved_beside,
    tensor_value,
)
from compile.graphs.static_graph import session

_LEVELS = 127


class FakeQuantized:
    """Makes sessions of one prepared graph with any choice of integer operations."""

    def __init__(
        self,
        graph: Path,
        operations: Collection[Operation],
        ranges: Mapping[str, Range],
        *,
        whole_shifts: bool,
    ) -> None:
        """``whole_shifts``: results are scaled by powers of two alone (BM1684)."""
        self._graph = graph
        self._operations = operations
        self._thresholds = {name: one.threshold() for name, one in ranges.items()}
        self._whole_shifts = whole_shifts
        self._weights: dict[str, NDArray[np.float32]] = {}

    def session(self, integers: Collection[str]) -> onnxruntime.InferenceSession:
        """The graph with the named operations (of the vendor's MLIR) on integers."""
        model = load_graph(self._graph)
        changed = _Changed(self, model)
        for operation in self._operations:
            if operation.name in integers:
                changed.make_integer(operation)
        changed.finish()
        with saved_beside(model, self._graph) as path:
            return session(path)

    def threshold(self, tensor: str) -> float | None:
        """Largest representable value of a tensor."""
        return self._thresholds.get(tensor)

    def weight_steps(
        self, tensor: onnx.TensorProto, *, taken: float, made: float, convolution: bool
    ) -> NDArray[np.float32]:
        """Step of a weight's integers: one, or one per output channel (last or first axis).

        Args:
            tensor: the weight.
            taken: threshold of the operation's input.
            made: threshold of its output.
            convolution: whether it is a convolution's, ``[outputs, inputs, ...]``.
        """
        key = tensor.name
        if key not in self._weights:
            value = np.abs(tensor_value(tensor, self._graph.parent).astype(np.float32))
            axes = tuple(range(1, value.ndim)) if convolution else tuple(range(value.ndim - 1))
            self._weights[key] = np.maximum(value.max(axis=axes), 1e-8)
        largest = self._weights[key]
        if not self._whole_shifts:
            return (largest / _LEVELS).astype(np.float32)
        # The chip's sums are shifted right by whole bits, so weights are scaled to
        # 2^shift * input step / output step, the largest that keeps them within eight bits: one
        # shift for a matrix, one per channel for a convolution.
        ratio = taken / made
        largest = largest if convolution else largest.max()
        shifts = np.floor(np.log2(_LEVELS / np.maximum(largest * ratio, 1e-12)))
        steps: NDArray[np.float32] = 1.0 / (2.0 ** np.maximum(shifts, 0.0) * ratio)
        return np.asarray(steps, dtype=np.float32)


class _Changed:
    """One graph being changed."""

    def __init__(self, maker: FakeQuantized, model: onnx.ModelProto) -> None:
        self._maker = maker
        self._model = model
        self._known = constants(model)
        self._made_by = producers(model)
        self._before: dict[int, list[onnx.NodeProto]] = {}
        self._outputs: set[str] = set()

    def make_integer(self, operation: Operation) -> None:
        """Rounds what an operation takes and makes."""
        made = operation.tensor
        node = self._made_by.get(made)
        if node is None:
            return
        product = self._product(node) if operation.kind == "MatMul" else node
        taken = list(dict.fromkeys(name for name in product.input if name))
        for name in taken:
            threshold = self._maker.threshold(name)
            if name in self._known:
                self._round_weight(product, name, taken[0], made)
            elif threshold is not None:
                steps = np.array(threshold / _LEVELS, dtype=np.float32)
                self._round_input(product, name, steps, -1)
        threshold = self._maker.threshold(made)
        if threshold is not None:
            self._outputs.add(made)

    def finish(self) -> None:
        """Writes the changed nodes back."""
        nodes: list[onnx.NodeProto] = []
        for node in self._model.graph.node:
            nodes += self._before.get(id(node), [])
            made = [name for name in node.output if name in self._outputs]
            nodes.append(node)
            for name in made:
                inner = f"{name}.unrounded"
                for index, output in enumerate(node.output):
                    if output == name:
                        node.output[index] = inner
                threshold = self._maker.threshold(name) or 1.0
                steps = np.array(threshold / _LEVELS, dtype=np.float32)
                nodes += self._pair(inner, name, steps, -1)
        replace_nodes(self._model, nodes)

    def _product(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The matrix product of a linear layer whose last node is the bias."""
        if node.op_type != "Add":
            return node
        for name in node.input:
            maker = self._made_by.get(name)
            if maker is not None and maker.op_type in {"MatMul", "Gemm"}:
                return maker
        return node

    def _round_weight(self, product: onnx.NodeProto, name: str, taken: str, made: str) -> None:
        tensor = self._known[name]
        if product.op_type not in {"MatMul", "Gemm", "Conv"} or len(tensor.dims) < 2:
            return
        convolution = product.op_type == "Conv"
        transposed = any(a.name == "transB" and a.i for a in product.attribute)
        steps = self._maker.weight_steps(
            tensor,
            taken=self._maker.threshold(taken) or 1.0,
            made=self._maker.threshold(made) or 1.0,
            convolution=convolution or transposed,
        )
        axis = 0 if convolution or transposed else len(tensor.dims) - 1
        self._round_input(product, name, steps, axis if steps.ndim else -1)

    def _round_input(
        self, node: onnx.NodeProto, name: str, steps: NDArray[np.float32], axis: int
    ) -> None:
        rounded = f"{name}.rounded_for.{node.output[0]}"
        if rounded in node.input:
            return
        self._before.setdefault(id(node), []).extend(self._pair(name, rounded, steps, axis))
        for index, taken in enumerate(node.input):
            if taken == name:
                node.input[index] = rounded

    def _pair(
        self, source: str, result: str, steps: NDArray[np.float32], axis: int
    ) -> list[onnx.NodeProto]:
        scale, zero, integer = f"{result}.scale", f"{result}.zero", f"{result}.integer"
        graph = self._model.graph
        graph.initializer.append(numpy_helper.from_array(np.maximum(steps, 1e-10), scale))
        graph.initializer.append(
            numpy_helper.from_array(np.zeros(steps.shape, dtype=np.int8), zero)
        )
        attributes = {"axis": axis} if axis >= 0 else {}
        return [
            helper.make_node("QuantizeLinear", [source, scale, zero], [integer], **attributes),
            helper.make_node("DequantizeLinear", [integer, scale, zero], [result], **attributes),
        ]
