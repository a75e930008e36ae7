"""Defects of exported graphs, as a buggy exporter would make them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from tests.faults.graph_changes import (
    Change,
    Model,
    attribute,
    before,
    bypass,
    constant,
    graph,
    half,
    heads_swapped,
    interpolated,
    noise,
    one_row,
    reads,
    row_off,
    swap,
    swap_layers,
    swap_outputs,
    tanh_gelu,
    weight,
)


def _fault(name: str, task: str, component: str, change: Change, named: str) -> dict[str, Any]:
    return {
        "name": name,
        "task": task,
        "component": component,
        "plant": graph(component, change),
        "named": f"export: {component} {named}",
    }


_VISION, _DECODER, _TEXT = "vision_encoder", "text_decoder", "text_encoder"
_MASK = "self_attention_mask"

GRAPH_FAULTS: list[dict[str, Any]] = [
    _fault(
        "one layer's weights off by 1 %",
        "caption",
        _VISION,
        weight("layers.2.feed_forward.inner.weight", noise(0.01)),
        r"layers\.2\.feed_forward\.inner",
    ),
    _fault(
        "one layer's weights off by 0.01 %",
        "caption",
        _DECODER,
        weight("layers.1.attention.query.weight", noise(1e-4)),
        r"layers\.1\.attention\.query",
    ),
    _fault(
        "one layer scaled by 1.01",
        "vqa",
        _TEXT,
        weight("layers.1.attention.output.weight", lambda a: a * 1.01),
        r"layers\.1\.attention\.output",
    ),
    _fault(
        "keys and values swapped",
        "caption",
        _DECODER,
        swap("layers.0.attention.key.weight", "layers.0.attention.value.weight"),
        r"layers\.0\.attention\.(key|value)",
    ),
    _fault(
        "cross keys and values swapped",
        "vqa",
        "cross_key_values",
        swap_outputs("cross.1.key", "cross.1.value"),
        r"layers\.1(\b|$)",
    ),
    _fault(
        "exact GELU became tanh GELU",
        "caption",
        _VISION,
        tanh_gelu("/layers.1/feed_forward/activation"),
        r"layers\.1\.feed_forward\.activation",
    ),
    _fault(
        "LayerNorm epsilon 1e-5",
        "caption",
        _DECODER,
        attribute("/layers.1/attention/norm/LayerNormalization", "epsilon", 1e-5),
        r"layers\.1\.attention\.norm",
    ),
    _fault("mask constant -10", "vqa", _TEXT, constant("/Mul", lambda a: a * 0 - 10), r"graph"),
    _fault(
        "mask constant -100",
        "itm",
        "text_encoder_unimodal",
        constant("/Mul", lambda a: a * 0 - 100),
        r"graph",
    ),
    _fault(
        "decoder ignores its mask",
        "caption",
        _DECODER,
        before(_MASK, "Mul", 0.0, TensorProto.FLOAT),
        r"layers\.\d\.attention",
    ),
    _fault(
        "pads are attended",
        "itm",
        _TEXT,
        before("attention_mask", "Max", 1, TensorProto.INT64),
        r"graph",
    ),
    _fault(
        "residual dropped",
        "caption",
        _VISION,
        bypass("/layers.1/Add_1", 0),
        r"layers\.(1|2\.attention_norm)",
    ),
    _fault(
        "scale is not 1/sqrt(d)",
        "caption",
        _DECODER,
        constant("/layers.0/cross_attention/Mul", lambda a: a / np.sqrt(2)),
        r"layers\.0\.cross_attention",
    ),
    _fault(
        "bias missing",
        "vqa",
        _DECODER,
        weight("layers.1.feed_forward.feed_forward.inner.bias", lambda a: a * 0),
        r"layers\.1\.feed_forward\.feed_forward\.inner",
    ),
    _fault(
        "layers swapped", "itm", _VISION, swap_layers("layers.1", "layers.2"), r"layers\.(1|2)\."
    ),
    _fault(
        "heads swapped",
        "caption",
        _VISION,
        weight("layers.0.attention.value.weight", heads_swapped),
        r"layers\.0\.attention\.value",
    ),
    _fault(
        "head transposed",
        "caption",
        _DECODER,
        weight("head.transform.weight", lambda a: a.T),
        r"head\.transform",
    ),
    _fault("weights truncated to f16", "vqa", _VISION, half, r"(patches|layers|class|positions)"),
    _fault(
        "tied embedding changed in one row",
        "caption",
        _DECODER,
        weight("embeddings.tokens", one_row),
        r"embeddings\.tokens",
    ),
    _fault(
        "text positions off by one",
        "vqa",
        _TEXT,
        weight("embeddings.positions", row_off),
        r"embeddings\.positions",
    ),
    _fault(
        "image positions interpolated",
        "caption",
        _VISION,
        weight("positions", interpolated),
        r"positions",
    ),
    _fault(
        "patch weights expect BGR",
        "caption",
        _VISION,
        weight("patches.weight", lambda a: a[:, ::-1]),
        r"patches",
    ),
    _fault(
        "class token missing", "caption", _VISION, weight("class_token", lambda a: a * 0), r"class"
    ),
    _fault(
        "match logits swapped", "itm", _TEXT, weight("head.weight", lambda a: a[:, ::-1]), r"head"
    ),
    _fault(
        "image features not normalised", "itm", "vision_projection", bypass("/Div", 0), r"graph"
    ),
    _fault(
        "text features taken from the last token",
        "itm",
        "text_encoder_unimodal",
        reads("/features/Slice", 1, "planted_start"),
        r"features",
    ),
    _fault(
        "cross-attention reads another layer's keys",
        "vqa",
        _TEXT,
        reads(
            "/layers.1/cross_attention/Transpose_2", 0, "/layers.0/cross_key_value/Reshape_output_0"
        ),
        r"layers\.1\.cross_attention",
    ),
    _fault(
        "softmax over queries",
        "caption",
        _VISION,
        attribute("/layers.2/attention/Softmax", "axis", 2),
        r"layers\.2\.attention",
    ),
    _fault(
        "vocabulary bias missing", "vqa", _DECODER, weight("head.bias", lambda a: a * 0), r"head"
    ),
    _fault(
        "cross-attention skipped",
        "caption",
        _DECODER,
        bypass("/layers.1/cross_attention/Add", 1),
        r"layers\.1\.cross_attention",
    ),
]


def _last_token(model: Model) -> None:
    start, end = (np.array([n], dtype=np.int64) for n in (-1, np.iinfo(np.int64).max))
    for name, array in (("planted_start", start), ("planted_end", end)):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    reads("/features/Slice", 1, "planted_start")(model)
    reads("/features/Slice", 2, "planted_end")(model)


for _entry in GRAPH_FAULTS:
    if _entry["name"] == "text features taken from the last token":
        _entry["plant"] = graph("text_encoder_unimodal", _last_token)
