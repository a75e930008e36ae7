"""Ways to change an exported graph, for planted defects."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.manifest import file_record

Model = onnx.ModelProto
Change = Callable[[Model], None]


def reseal(path: Path) -> None:
    """Makes the component's manifest agree with a changed file."""
    (manifest,) = [m for m in path.parent.glob("*.manifest.json") if path.stem == m.name[:-14]]
    data = json.loads(manifest.read_text())
    data["files"][path.name] = asdict(file_record(path))
    manifest.write_text(json.dumps(data))


def graph(component: str, change: Change) -> Callable[[Path], None]:
    """Changes one exported graph and re-seals its manifest."""

    def plant(folder: Path) -> None:
        path = folder / "onnx" / f"{component}.onnx"
        model = onnx.load(path)
        change(model)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        reseal(path)

    return plant


def weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Changes one constant."""

    def apply(model: Model) -> None:
        tensor = initializer(model, name)
        array = numpy_helper.to_array(tensor).copy()
        changed = change(array).astype(np.float32)
        assert not np.array_equal(changed, array), name
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    return apply


def initializer(model: Model, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def node(model: Model, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def noise(share: float) -> Callable[[np.ndarray], np.ndarray]:
    """Each value off by a random part of itself."""

    def apply(array: np.ndarray) -> np.ndarray:
        return array * (1 + share * np.random.default_rng(0).standard_normal(array.shape))

    return apply


def swap(first: str, second: str) -> Change:
    """Two constants change places."""

    def apply(model: Model) -> None:
        a, b = initializer(model, first), initializer(model, second)
        left, right = numpy_helper.to_array(a).copy(), numpy_helper.to_array(b).copy()
        a.CopyFrom(numpy_helper.from_array(right, first))
        b.CopyFrom(numpy_helper.from_array(left, second))

    return apply


def swap_layers(first: str, second: str) -> Change:
    def apply(model: Model) -> None:
        names = [t.name for t in model.graph.initializer if t.name.startswith(first + ".")]
        for name in names:
            other = name.replace(first, second, 1)
            if any(t.name == other for t in model.graph.initializer):
                swap(name, other)(model)

    return apply


def swap_outputs(first: str, second: str) -> Change:
    def apply(model: Model) -> None:
        for n in model.graph.node:
            for i, name in enumerate(n.output):
                n.output[i] = {first: second, second: first}.get(name, name)

    return apply


def bypass(name: str, operand: int) -> Change:
    """A node's readers get one of its operands instead."""

    def apply(model: Model) -> None:
        target = node(model, name)
        output, kept = target.output[0], target.input[operand]
        model.graph.node.remove(target)
        for n in model.graph.node:
            for i, value in enumerate(n.input):
                if value == output:
                    n.input[i] = kept
        if any(o.name == output for o in model.graph.output):
            model.graph.node.append(helper.make_node("Identity", [kept], [output], name=name))

    return apply


def reads(name: str, operand: int, value: str) -> Change:
    """A node reads another tensor."""

    def apply(model: Model) -> None:
        node(model, name).input[operand] = value

    return apply


def constant(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Changes the constant operand of a node."""

    def apply(model: Model) -> None:
        inputs = node(model, name).input
        for n in model.graph.node:
            if n.op_type == "Constant" and n.output[0] in inputs:
                (attribute,) = n.attribute
                array = numpy_helper.to_array(attribute.t)
                attribute.t.CopyFrom(numpy_helper.from_array(change(array).astype(array.dtype)))
                return
        raise AssertionError(f"{name} has no constant")

    return apply


def attribute(name: str, key: str, value: Any) -> Change:
    def apply(model: Model) -> None:
        target = node(model, name)
        kept = [a for a in target.attribute if a.name != key]
        del target.attribute[:]
        target.attribute.extend([*kept, helper.make_attribute(key, value)])

    return apply


def tanh_gelu(scope: str) -> Change:
    """The exact GELU becomes its tanh approximation."""

    def apply(model: Model) -> None:
        divide, erf = node(model, f"{scope}/Div"), node(model, f"{scope}/Erf")
        x = divide.input[0]
        at = list(model.graph.node).index(erf)
        constants = {"t_a": 0.044715, "t_b": float(np.sqrt(2 / np.pi))}
        for name, value in constants.items():
            model.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
        parts = [
            helper.make_node("Mul", [x, x], ["t_2"]),
            helper.make_node("Mul", ["t_2", x], ["t_3"]),
            helper.make_node("Mul", ["t_3", "t_a"], ["t_4"]),
            helper.make_node("Add", ["t_4", x], ["t_5"]),
            helper.make_node("Mul", ["t_5", "t_b"], ["t_6"]),
            helper.make_node("Tanh", ["t_6"], [erf.output[0]], name=f"{scope}/Tanh"),
        ]
        model.graph.node.remove(erf)
        for offset, part in enumerate(parts):
            model.graph.node.insert(at + offset, part)

    return apply


def before(tensor: str, operator: str, value: Any, kind: int) -> Change:
    """Every reader of an input reads it through another operator with a constant."""

    def apply(model: Model) -> None:
        array = np.array(value, dtype=helper.tensor_dtype_to_np_dtype(kind))
        model.graph.initializer.append(numpy_helper.from_array(array, "planted"))
        for n in model.graph.node:
            for i, name in enumerate(n.input):
                if name == tensor:
                    n.input[i] = "planted_result"
        made = helper.make_node(operator, [tensor, "planted"], ["planted_result"])
        model.graph.node.insert(0, made)

    return apply


def half(model: Model) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def heads_swapped(array: np.ndarray) -> np.ndarray:
    left, right = np.split(array, 2, axis=-1)
    return np.concatenate([right, left], axis=-1)


def row_off(array: np.ndarray) -> np.ndarray:
    return np.roll(array, 1, axis=0)


def one_row(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed[3] += 0.05
    return changed


def zeroed(row: int) -> Callable[[np.ndarray], np.ndarray]:
    """One row of a table is lost."""

    def change(array: np.ndarray) -> np.ndarray:
        changed = array.copy()
        changed[row] = 0
        return changed

    return change


def renamed(name: str, change: Change) -> Change:
    """A changed constant under a name that says nothing, as optimisers leave it."""

    def apply(model: Model) -> None:
        change(model)
        initializer(model, name).name = "onnx::Gather_77"
        for n in model.graph.node:
            for i, read in enumerate(n.input):
                if read == name:
                    n.input[i] = "onnx::Gather_77"

    return apply


def interpolated(array: np.ndarray) -> np.ndarray:
    """Patch positions as if interpolated from a grid of half the size."""
    side = int(np.sqrt(array.shape[1] - 1))
    grid = array[0, 1:].reshape(side, side, -1)
    coarse = grid.reshape(side // 2, 2, side // 2, 2, -1).mean(axis=(1, 3))
    fine = coarse.repeat(2, axis=0).repeat(2, axis=1)
    return np.concatenate([array[:, :1], fine.reshape(1, side * side, -1)], axis=1)


def truncated(array: np.ndarray) -> np.ndarray:
    """Upper eight bits of the mantissa only."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def rounded_to_half(name: str) -> Change:
    """An operator's result passes through half precision, as after a careless cast."""

    def apply(model: Model) -> None:
        maker = node(model, name)
        output = maker.output[0]
        maker.output[0] = "planted_wide"
        at = list(model.graph.node).index(maker)
        for step, (source, to, kind) in enumerate(
            [
                ("planted_wide", "planted_half", TensorProto.FLOAT16),
                ("planted_half", output, TensorProto.FLOAT),
            ]
        ):
            cast = helper.make_node("Cast", [source], [to], name=f"{name}/Cast{step}", to=kind)
            model.graph.node.insert(at + 1 + step, cast)

    return apply


def copied(first: str, second: str) -> Change:
    """One layer gets another one's weights."""

    def apply(model: Model) -> None:
        for tensor in model.graph.initializer:
            if tensor.name.startswith(f"{first}."):
                other = initializer(model, tensor.name.replace(first, second, 1))
                array = numpy_helper.to_array(other).copy()
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return apply


def last_token(model: Model) -> None:
    start, end = (np.array([n], dtype=np.int64) for n in (-1, np.iinfo(np.int64).max))
    for name, array in (("planted_start", start), ("planted_end", end)):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    reads("/features/Slice", 1, "planted_start")(model)
    reads("/features/Slice", 2, "planted_end")(model)
