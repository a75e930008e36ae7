"""Ways to change an OpenVINO IR, for planted defects."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops

from tests.faults.graph_changes import reseal

Change = Callable[[openvino.Model], None]


def ir(component: str, change: Change, precision: str = "f16") -> Callable[[Path], None]:
    """Changes one IR and re-seals its manifest."""

    def plant(folder: Path) -> None:
        xml = folder / "openvino" / precision / f"{component}.xml"
        model = openvino.Core().read_model(xml)
        change(model)
        model.validate_nodes_and_infer_types()
        work = xml.parent / ".planted"
        work.mkdir()
        openvino.save_model(model, work / xml.name, compress_to_fp16=False)
        del model
        for path in (xml, xml.with_suffix(".bin")):
            (work / path.name).replace(path)
            reseal(path)
        work.rmdir()

    return plant


def find(model: openvino.Model, name: str, kind: str | None = None) -> Any:
    return next(
        op
        for op in model.get_ordered_ops()
        if op.get_friendly_name() == name and kind in (None, op.get_type_name())
    )


def put(old: Any, new: Any) -> None:
    """Readers of a constant get another one of the same type."""
    made = ops.constant(new.astype(old.get_data().dtype))
    made.set_friendly_name(old.get_friendly_name())
    made.output(0).set_names(old.output(0).get_names())
    for port in list(old.output(0).get_target_inputs()):
        port.replace_source_output(made.output(0))


def weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def apply(model: openvino.Model) -> None:
        names = (name, f"{name}_compressed")
        old = next(
            op
            for op in model.get_ordered_ops()
            if op.get_type_name() == "Constant" and op.get_friendly_name() in names
        )
        put(old, change(np.array(old.get_data(), dtype=np.float32)))

    return apply


def swap(first: str, second: str) -> Change:
    def apply(model: openvino.Model) -> None:
        a, b = (find(model, f"{name}_compressed", "Constant") for name in (first, second))
        left, right = np.array(a.get_data()), np.array(b.get_data())
        put(a, right)
        put(b, left)

    return apply


def scalar(node: str, change: Callable[[float], float]) -> Change:
    """Changes the constant operand of an operator."""

    def apply(model: openvino.Model) -> None:
        operator = find(model, node)
        for port in operator.inputs():
            source = port.get_source_output().get_node()
            if source.get_type_name() == "Convert":
                source = source.input(0).get_source_output().get_node()
            if source.get_type_name() == "Constant":
                put(
                    source,
                    np.array(change(float(source.get_data().reshape(-1)[0]))).reshape(
                        source.get_data().shape
                    ),
                )
                return
        raise AssertionError(node)

    return apply


def after(node: str, build: Callable[[Any], Any]) -> Change:
    """Readers of an operator get what ``build`` makes of its output, under the same names."""

    def apply(model: openvino.Model) -> None:
        output = find(model, node).output(0)
        readers = list(output.get_target_inputs())
        names = output.get_names()
        made = build(output)
        output.set_names(set())
        made.output(0).set_names(names)
        for port in readers:
            port.replace_source_output(made.output(0))

    return apply


def dropped(node: str, operand: int) -> Change:
    """Readers of an operator get one of its operands."""

    def apply(model: openvino.Model) -> None:
        operator = find(model, node)
        kept = operator.input(operand).get_source_output()
        for port in list(operator.output(0).get_target_inputs()):
            port.replace_source_output(kept)

    return apply


def saturated(output: Any) -> Any:
    """INT8 with a threshold at a tenth of the values' range."""
    low, high = np.float32(-0.3), np.float32(0.3)
    return ops.fake_quantize(output, low, high, low, high, 256)


def coarse(output: Any) -> Any:
    """INT8 with a range a hundred times too wide."""
    low, high = np.float32(-300.0), np.float32(300.0)
    return ops.fake_quantize(output, low, high, low, high, 256)


def overflowing(output: Any) -> Any:
    """What half precision makes of values scaled by 60,000: infinities beyond its range."""
    beyond = ops.greater(ops.abs(output), np.float32(65504 / 60000))
    infinite = ops.multiply(ops.sign(output), np.float32(np.inf))
    return ops.select(beyond, infinite, output)


def epsilon(value: float) -> Change:
    def apply(model: openvino.Model) -> None:
        norms = [op for op in model.get_ordered_ops() if op.get_type_name() == "MVN"]
        old = norms[3]
        made = ops.mvn(old.input_value(0), old.input_value(1), True, value, "INSIDE_SQRT")
        for port in list(old.output(0).get_target_inputs()):
            port.replace_source_output(made.output(0))

    return apply


def tanh_gelu(scope: str) -> Change:
    def apply(model: openvino.Model) -> None:
        x = find(model, f"{scope}/Div").input(0).get_source_output()
        cubic = ops.multiply(ops.power(x, np.float32(3)), np.float32(0.044715))
        inner = ops.multiply(ops.add(x, cubic), np.float32(np.sqrt(2 / np.pi)))
        old, made = find(model, f"{scope}/Erf").output(0), ops.tanh(inner)
        for port in list(old.get_target_inputs()):
            port.replace_source_output(made.output(0))

    return apply


def mapping(component: str, side: str, first: str, second: str) -> Callable[[Path], None]:
    """The IR's manifest calls two tensors by each other's names."""

    def plant(folder: Path) -> None:
        path = folder / "openvino" / "f16" / f"{component}.manifest.json"
        data = json.loads(path.read_text())
        by_name = {spec["name"]: spec for spec in data["nets"][0][side]}
        a, b = by_name[first], by_name[second]
        a["artifact_name"], b["artifact_name"] = b["artifact_name"], a["artifact_name"]
        path.write_text(json.dumps(data))

    return plant


def of_another_task(component: str, other: str) -> Callable[[Path], None]:
    """The IR of another checkpoint's component, under this one's manifest."""
    root = Path(__file__).resolve().parent.parent.parent / "models" / "artifacts" / "reference"

    def plant(folder: Path) -> None:
        for ending in (".xml", ".bin"):
            path = folder / "openvino" / "f16" / f"{component}{ending}"
            shutil.copy(root / other / "openvino" / "f16" / path.name, path)
            reseal(path)

    return plant


def behind(parameter: str, build: Callable[[Any], Any]) -> Change:
    """Readers of an input get what ``build`` makes of it."""

    def apply(model: Any) -> None:
        port = next(p for p in model.inputs if parameter in p.get_names())
        readers = list(port.get_target_inputs())
        made = build(port)
        for reader in readers:
            reader.replace_source_output(made.output(0))

    return apply


def first_row(parameter: str) -> Change:
    """All rows of a batch get the first one's input."""
    axis, row = np.int64(0), np.array([0], dtype=np.int64)
    return behind(parameter, lambda port: ops.gather(port, ops.constant(row), ops.constant(axis)))


def clamped(parameter: str, most: int) -> Change:
    """Ids or positions beyond a limit are the limit."""
    return behind(parameter, lambda port: ops.minimum(port, ops.constant(np.int64(most))))


def last_columns(mask: str, count: int) -> Change:
    """A mask that is closed but for its last columns."""

    def build(port: Any) -> Any:
        total = ops.gather(ops.shape_of(port), ops.constant(3), ops.constant(0))
        columns = ops.range(np.int64(0), total, np.int64(1), output_type="i64")
        early = ops.less(columns, ops.subtract(total, ops.constant(np.int64(count))))
        return ops.select(early, ops.constant(np.float32(-10000.0)), port)

    return behind(mask, build)


def untied(table: str, row: int) -> Change:
    """Ids are looked up in a table of their own, one row of which is off."""

    def apply(model: openvino.Model) -> None:
        lookup = next(
            op
            for op in model.get_ordered_ops()
            if op.get_friendly_name() == table and op.get_type_name() == "Gather"
        )
        stored = lookup.input_value(0).get_node().input_value(0).get_node()
        own = np.array(stored.get_data())
        own[row] *= 1.5
        made = ops.convert(ops.constant(own), "f32")
        lookup.input(0).replace_source_output(made.output(0))

    return apply
