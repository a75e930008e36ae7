"""Defects of integer IRs: what a wrong calibration, a wrong scale or a buggy pass would leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops

from tests.faults.fault import Fault, integer_fault
from tests.faults.graph_changes import zeroed
from tests.faults.ir_changes import Change, dropped, find, put, scalar, tanh_gelu, weight

_SEED = 5


def _weights(model: openvino.Model, product: str) -> list[Any]:
    """Constants behind a product's weights: integers first, then zero points and scales."""
    found: list[Any] = []
    waiting = [find(model, product).input(1).get_source_output().get_node()]
    while waiting:
        node = waiting.pop(0)
        if node.get_type_name() == "Constant":
            found.append(node)
        waiting += [port.get_source_output().get_node() for port in node.inputs()]
    return sorted(found, key=lambda node: -node.get_data().size)


def _integers(product: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def apply(model: openvino.Model) -> None:
        old = _weights(model, product)[0]
        limits = np.iinfo(old.get_data().dtype)
        values = np.rint(change(old.get_data().astype(np.float64)))
        put(old, np.clip(values, limits.min, limits.max))

    return apply


def _noisy(array: np.ndarray) -> np.ndarray:
    generator = np.random.default_rng(_SEED)
    return array * (1 + 0.01 * generator.standard_normal(array.shape))


def _scales(product: str, factor: float) -> Change:
    def apply(model: openvino.Model) -> None:
        scale = next(n for n in _weights(model, product) if n.get_data().dtype.kind == "f")
        put(scale, scale.get_data().astype(np.float32) * factor)

    return apply


def _swapped(first: str, second: str) -> Change:
    def apply(model: openvino.Model) -> None:
        pairs = zip(_weights(model, first), _weights(model, second), strict=True)
        for a, b in list(pairs):
            left, right = np.array(a.get_data()), np.array(b.get_data())
            put(a, right)
            put(b, left)

    return apply


def _range(before: str, factor: float) -> Change:
    """The limits of the quantiser behind a tensor."""

    def apply(model: openvino.Model) -> None:
        for node in model.get_ordered_ops():
            if node.get_type_name() == "FakeQuantize" and before in node.get_friendly_name():
                for port in range(1, 5):
                    old = node.input(port).get_source_output().get_node()
                    put(old, np.array(old.get_data()) * factor)
                return
        raise AssertionError(before)

    return apply


def _one_scale(product: str) -> Change:
    """One scale for a whole tensor of weights: that of its loudest channel."""

    def apply(model: Any) -> None:
        found = _weights(model, product)
        weights, scale = found[0], next(n for n in found if n.get_data().dtype.kind == "f")
        own = scale.get_data().astype(np.float32)
        largest = own.max()
        limits = np.iinfo(weights.get_data().dtype)
        values = np.rint(weights.get_data() * (own / largest))
        put(weights, np.clip(values, limits.min, limits.max))
        put(scale, np.full_like(own, largest))

    return apply


def _shifted(before: str) -> Change:
    """A zero point that is off by one: all values come out one step too high."""

    def apply(model: Any) -> None:
        for node in model.get_ordered_ops():
            if node.get_type_name() == "FakeQuantize" and before in node.get_friendly_name():
                limits = [node.input(i).get_source_output().get_node() for i in range(1, 5)]
                low, high = (np.array(limit.get_data()) for limit in limits[:2])
                step = (high - low) / (node.get_attributes()["levels"] - 1)
                # Both ranges may share their constants: the result is moved, not the limits.
                readers = list(node.output(0).get_target_inputs())
                made = ops.fake_quantize(
                    node.input_value(0), low, high, low + step, high + step, 256
                )
                names = node.output(0).get_names()
                node.output(0).set_names(set())
                made.output(0).set_names(names)
                made.set_friendly_name(node.get_friendly_name() + "/moved")
                for port in readers:
                    port.replace_source_output(made.output(0))
                return
        raise AssertionError(before)

    return apply


INTEGER_FAULTS: list[Fault] = [
    integer_fault(
        "threshold of one layer over 8",
        "caption",
        "vision_encoder",
        _range("/layers.2/feed_forward/activation/Mul_1", 1 / 8),
        r"layers\.2\.feed_forward\.activation",
    ),
    integer_fault(
        "range a hundred times too wide",
        "itm",
        "vision_encoder",
        _range("/layers.1/attention/query/Add", 100.0),
        r"layers\.1\.attention\.query",
    ),
    integer_fault(
        "one layer's weights off by 1 %",
        "vqa",
        "vision_encoder",
        _integers("/layers.1/attention/value/MatMul", _noisy),
        r"layers\.1\.attention\.value",
    ),
    integer_fault(
        "one layer's scales off by 1 %",
        "itm",
        "text_encoder",
        _scales("/layers.0/attention/output/MatMul", 1.01),
        r"layers\.0\.attention\.output",
    ),
    integer_fault(
        "keys and values swapped",
        "caption",
        "vision_encoder",
        _swapped("/layers.1/attention/key/MatMul", "/layers.1/attention/value/MatMul"),
        r"layers\.1\.attention\.(key|value)",
    ),
    integer_fault(
        "tanh GELU",
        "vqa",
        "text_decoder",
        tanh_gelu("/layers.0/feed_forward/feed_forward/activation"),
        r"layers\.0\.feed_forward\.feed_forward\.activation",
    ),
    integer_fault(
        "scale is not 1/sqrt(d)",
        "caption",
        "vision_encoder",
        scalar("/layers.1/attention/Mul", lambda v: v * 0.99),
        r"layers\.1\.attention",
    ),
    integer_fault(
        "residual dropped", "itm", "vision_encoder", dropped("/layers.2/Add", 1), r"layers\.2"
    ),
    integer_fault(
        "one weight scale per tensor",
        "caption",
        "vision_encoder",
        _one_scale("/layers.2/feed_forward/inner/MatMul"),
        r"layers\.2\.feed_forward\.inner",
    ),
    integer_fault(
        "zero point off by one",
        "vqa",
        "vision_encoder",
        _shifted("/layers.1/feed_forward/activation/Mul_1"),
        r"layers\.1\.feed_forward",
    ),
    integer_fault(
        "activation threshold halved",
        "itm",
        "vision_encoder",
        _range("/layers.2/feed_forward/activation/Mul_1", 0.5),
        r"layers\.2\.feed_forward",
    ),
    integer_fault(
        "row of a late position is lost",
        "vqa",
        "text_encoder",
        weight("embeddings.positions", zeroed(30)),
        r"embeddings\.positions",
    ),
]
