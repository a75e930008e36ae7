"""Defects of OpenVINO IRs beside right exported graphs, as a buggy converter would make them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops

from tests.faults.graph_changes import heads_swapped, noise, reseal

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
        old = find(model, f"{name}_compressed", "Constant")
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


def truncated(array: np.ndarray) -> np.ndarray:
    """Upper eight bits of the mantissa only."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


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


def _fault(name: str, task: str, component: str, change: Change, named: str) -> dict[str, Any]:
    return {
        "name": f"IR: {name}",
        "task": task,
        "component": component,
        "plant": ir(component, change),
        "named": f"target: {component} {named}",
    }


def _filed(
    name: str, task: str, component: str, plant: Callable[[Path], None], named: str
) -> dict[str, Any]:
    entry = {"name": f"IR: {name}", "task": task, "component": component, "plant": plant}
    return {**entry, "named": f"target: {component} {named}"}


_VISION, _DECODER, _TEXT = "vision_encoder", "text_decoder", "text_encoder"

IR_FAULTS: list[dict[str, Any]] = [
    _fault(
        "one layer's weights off by 1 %",
        "caption",
        _VISION,
        weight("layers.3.attention.value.weight", noise(0.01)),
        r"layers\.3\.attention\.value",
    ),
    _fault(
        "one layer scaled by 1.01",
        "vqa",
        _DECODER,
        weight("layers.0.cross_attention.output.weight", lambda a: a * 1.01),
        r"layers\.0\.cross_attention\.output",
    ),
    _fault(
        "one layer truncated to bf16",
        "itm",
        _TEXT,
        weight("layers.1.feed_forward.feed_forward.outer.weight", truncated),
        r"layers\.1\.feed_forward\.feed_forward\.outer",
    ),
    _fault(
        "keys and values swapped",
        "caption",
        _DECODER,
        swap("layers.1.attention.key.weight", "layers.1.attention.value.weight"),
        r"layers\.1\.attention\.(key|value)",
    ),
    _filed(
        "cross values of two layers swapped",
        "caption",
        _DECODER,
        mapping(_DECODER, "inputs", "cross.0.value", "cross.1.value"),
        r"layers\.(0|1)",
    ),
    _filed(
        "cross keys and values swapped",
        "vqa",
        "cross_key_values",
        mapping("cross_key_values", "outputs", "cross.0.key", "cross.0.value"),
        r"layers\.0",
    ),
    _filed("of another checkpoint", "vqa", _VISION, of_another_task(_VISION, "caption"), r""),
    _fault(
        "heads swapped",
        "vqa",
        "cross_key_values",
        weight("layers.1.value.weight", heads_swapped),
        r"layers\.1\.value",
    ),
    _fault(
        "threshold saturated",
        "caption",
        _VISION,
        after("/layers.2/feed_forward/activation/Mul_1", saturated),
        r"layers\.2\.feed_forward\.activation",
    ),
    _fault(
        "INT8 range too wide",
        "vqa",
        _TEXT,
        after("/layers.0/attention/norm/LayerNormalization", coarse),
        r"layers\.0\.attention\.norm",
    ),
    _fault(
        "f16 overflow",
        "caption",
        _DECODER,
        after("/layers.1/feed_forward/feed_forward/inner/Add", overflowing),
        r"layers\.1\.feed_forward\.feed_forward\.inner",
    ),
    _fault(
        "LayerNorm epsilon 1e-4", "caption", _VISION, epsilon(1e-4), r"layers\.1\.feed_forward_norm"
    ),
    _fault(
        "tanh GELU",
        "caption",
        _DECODER,
        tanh_gelu("/layers.0/feed_forward/feed_forward/activation"),
        r"layers\.0\.feed_forward\.feed_forward\.activation",
    ),
    _fault(
        "residual dropped",
        "itm",
        _VISION,
        dropped("/layers.2/Add", 1),
        r"layers\.2",
    ),
    _fault("mask constant -5", "vqa", _TEXT, scalar("/Mul", lambda _: -5.0), r"graph"),
    _fault(
        "scale is not 1/sqrt(d)",
        "caption",
        _VISION,
        scalar("/layers.1/attention/Mul", lambda v: v * 0.9),
        r"layers\.1\.attention",
    ),
    _fault(
        "mask not added",
        "vqa",
        _DECODER,
        dropped("/layers.1/cross_attention/Add", 0),
        r"layers\.1\.cross_attention",
    ),
    _fault(
        "bias missing",
        "itm",
        "text_encoder_unimodal",
        weight("features.projection.bias", lambda a: a * 0),
        r"features\.projection",
    ),
]
