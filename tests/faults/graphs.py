"""Defects of exported graphs, as a buggy exporter would make them."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.faults.fault import Fault, graph_fault
from tests.faults.graph_changes import (
    attribute,
    before,
    bypass,
    constant,
    copied,
    half,
    heads_swapped,
    interpolated,
    last_token,
    noise,
    one_row,
    reads,
    renamed,
    rounded_to_half,
    row_off,
    swap,
    swap_layers,
    swap_outputs,
    tanh_gelu,
    truncated,
    weight,
    zeroed,
)

_VISION, _DECODER, _TEXT = "vision_encoder", "text_decoder", "text_encoder"
_MASK = "self_attention_mask"

GRAPH_FAULTS: list[Fault] = [
    graph_fault(
        "one layer's weights off by 1 %",
        "caption",
        _VISION,
        weight("layers.2.feed_forward.inner.weight", noise(0.01)),
        r"layers\.2\.feed_forward\.inner",
    ),
    graph_fault(
        "one layer's weights off by 0.01 %",
        "caption",
        _DECODER,
        weight("layers.1.attention.query.weight", noise(1e-4)),
        r"layers\.1\.attention\.query",
    ),
    graph_fault(
        "one layer scaled by 1.01",
        "vqa",
        _TEXT,
        weight("layers.1.attention.output.weight", lambda a: a * 1.01),
        r"layers\.1\.attention\.output",
    ),
    graph_fault(
        "keys and values swapped",
        "caption",
        _DECODER,
        swap("layers.0.attention.key.weight", "layers.0.attention.value.weight"),
        r"layers\.0\.attention\.(key|value)",
    ),
    graph_fault(
        "cross keys and values swapped",
        "vqa",
        "cross_key_values",
        swap_outputs("cross.1.key", "cross.1.value"),
        r"layers\.1(\b|$)",
    ),
    graph_fault(
        "exact GELU became tanh GELU",
        "caption",
        _VISION,
        tanh_gelu("/layers.1/feed_forward/activation"),
        r"layers\.1\.feed_forward\.activation",
    ),
    graph_fault(
        "LayerNorm epsilon 1e-5",
        "caption",
        _DECODER,
        attribute("/layers.1/attention/norm/LayerNormalization", "epsilon", 1e-5),
        r"layers\.1\.attention\.norm",
    ),
    graph_fault(
        "mask constant -10", "vqa", _TEXT, constant("/Mul", lambda a: a * 0 - 10), r"graph"
    ),
    graph_fault(
        "mask constant -100",
        "itm",
        "text_encoder_unimodal",
        constant("/Mul", lambda a: a * 0 - 100),
        r"graph",
    ),
    graph_fault(
        "decoder ignores its mask",
        "caption",
        _DECODER,
        before(_MASK, "Mul", 0.0, TensorProto.FLOAT),
        r"layers\.\d\.attention",
    ),
    graph_fault(
        "pads are attended",
        "itm",
        _TEXT,
        before("attention_mask", "Max", 1, TensorProto.INT64),
        r"graph",
    ),
    graph_fault(
        "residual dropped",
        "caption",
        _VISION,
        bypass("/layers.1/Add_1", 0),
        r"layers\.(1|2\.attention_norm)",
    ),
    graph_fault(
        "scale is not 1/sqrt(d)",
        "caption",
        _DECODER,
        constant("/layers.0/cross_attention/Mul", lambda a: a / np.sqrt(2)),
        r"layers\.0\.cross_attention",
    ),
    graph_fault(
        "bias missing",
        "vqa",
        _DECODER,
        weight("layers.1.feed_forward.feed_forward.inner.bias", lambda a: a * 0),
        r"layers\.1\.feed_forward\.feed_forward\.inner",
    ),
    graph_fault(
        "layers swapped", "itm", _VISION, swap_layers("layers.1", "layers.2"), r"layers\.(1|2)\."
    ),
    graph_fault(
        "heads swapped",
        "caption",
        _VISION,
        weight("layers.0.attention.value.weight", heads_swapped),
        r"layers\.0\.attention\.value",
    ),
    graph_fault(
        "head transposed",
        "caption",
        _DECODER,
        weight("head.transform.weight", lambda a: a.T),
        r"head\.transform",
    ),
    graph_fault(
        "weights truncated to f16", "vqa", _VISION, half, r"(patches|layers|class|positions)"
    ),
    graph_fault(
        "tied embedding changed in one row",
        "caption",
        _DECODER,
        weight("embeddings.tokens", one_row),
        r"embeddings\.tokens",
    ),
    graph_fault(
        "renamed table with a lost row",
        "vqa",
        _TEXT,
        renamed("embeddings.tokens", weight("embeddings.tokens", zeroed(176))),
        r"embeddings\.tokens",
    ),
    graph_fault(
        "token ids limited",
        "vqa",
        _TEXT,
        before("input_ids", "Min", 180, TensorProto.INT64),
        r"embeddings\.tokens",
    ),
    graph_fault(
        "text positions off by one",
        "vqa",
        _TEXT,
        weight("embeddings.positions", row_off),
        r"embeddings\.positions",
    ),
    graph_fault(
        "image positions interpolated",
        "caption",
        _VISION,
        weight("positions", interpolated),
        r"positions",
    ),
    graph_fault(
        "patch weights expect BGR",
        "caption",
        _VISION,
        weight("patches.weight", lambda a: a[:, ::-1]),
        r"patches",
    ),
    graph_fault(
        "class token missing", "caption", _VISION, weight("class_token", lambda a: a * 0), r"class"
    ),
    graph_fault(
        "match logits swapped", "itm", _TEXT, weight("head.weight", lambda a: a[:, ::-1]), r"head"
    ),
    graph_fault(
        "image features not normalised", "itm", "vision_projection", bypass("/Div", 0), r"graph"
    ),
    graph_fault(
        "text features taken from the last token",
        "itm",
        "text_encoder_unimodal",
        last_token,
        r"features",
    ),
    graph_fault(
        "cross-attention reads another layer's keys",
        "vqa",
        _TEXT,
        reads(
            "/layers.1/cross_attention/Transpose_2", 0, "/layers.0/cross_key_value/Reshape_output_0"
        ),
        r"layers\.1\.cross_attention",
    ),
    graph_fault(
        "softmax over queries",
        "caption",
        _VISION,
        attribute("/layers.2/attention/Softmax", "axis", 2),
        r"layers\.2\.attention",
    ),
    graph_fault(
        "vocabulary bias missing", "vqa", _DECODER, weight("head.bias", lambda a: a * 0), r"head"
    ),
    graph_fault(
        "cross-attention skipped",
        "caption",
        _DECODER,
        bypass("/layers.1/cross_attention/Add", 1),
        r"layers\.1\.cross_attention",
    ),
    graph_fault(
        "last layer dropped",
        "caption",
        _VISION,
        reads("/norm/LayerNormalization", 0, "/layers.2/Add_1_output_0"),
        r"(norm|layers\.3)",
    ),
    graph_fault(
        "weights of another layer",
        "vqa",
        _VISION,
        copied("layers.1", "layers.2"),
        r"layers\.1",
    ),
    graph_fault(
        "last LayerNorm missing",
        "itm",
        _VISION,
        bypass("/norm/LayerNormalization", 0),
        r"norm",
    ),
    graph_fault(
        "attention scale missing in one layer",
        "vqa",
        _VISION,
        constant("/layers.2/attention/Mul", lambda a: a * 0 + 1),
        r"layers\.2\.attention",
    ),
    graph_fault(
        "cross-attention reads its own keys",
        "caption",
        _DECODER,
        reads("/layers.1/cross_attention/Transpose_2", 0, "cross.0.key"),
        r"layers\.1\.cross_attention",
    ),
    graph_fault(
        "one layer rounded to bf16",
        "itm",
        _TEXT,
        weight("layers.0.attention.key.weight", truncated),
        r"layers\.0\.attention\.key",
    ),
    graph_fault(
        "key bias zeroed",
        "caption",
        _VISION,
        weight("layers.0.attention.key.bias", lambda a: a * 0),
        r"layers\.0\.attention\.key",
    ),
    graph_fault(
        "one logit's bias off",
        "caption",
        _DECODER,
        weight("head.bias", lambda a: a + 0.5 * (np.arange(a.size) == 90)),
        r"head",
    ),
    graph_fault(
        "matching bias flipped",
        "itm",
        _TEXT,
        weight("head.bias", lambda a: a[::-1]),
        r"head",
    ),
    graph_fault(
        "rows of a batch share the first one's mask",
        "vqa",
        _TEXT,
        before("attention_mask", "Gather", [0], TensorProto.INT64),
        r"",
    ),
    graph_fault(
        "rows of a batch share the first one's keys",
        "caption",
        _DECODER,
        before("cross.1.key", "Gather", [0], TensorProto.INT64),
        r"(layers\.1\.cross_attention|cross\.1)",
    ),
    graph_fault(
        "mask constant -1e9, beyond half precision",
        "vqa",
        _TEXT,
        constant("/Mul", lambda a: a * 0 - 1e9),
        r"graph",
    ),
    graph_fault(
        "positions stop at 16",
        "caption",
        _DECODER,
        before("position_ids", "Min", 16, TensorProto.INT64),
        r"embeddings",
    ),
    graph_fault(
        "projection head off by 0.1 %",
        "itm",
        "vision_projection",
        weight("projection.weight", noise(1e-3)),
        r"projection",
    ),
    graph_fault(
        "softmax through half precision",
        "caption",
        _VISION,
        rounded_to_half("/layers.1/attention/Softmax"),
        r"layers\.1\.attention",
    ),
    graph_fault(
        "vision epsilon 1e-6",
        "itm",
        _VISION,
        attribute("/layers.2/attention_norm/LayerNormalization", "epsilon", 1e-6),
        r"layers\.2\.attention_norm",
    ),
    graph_fault(
        "new keys and values crossed",
        "vqa",
        _DECODER,
        swap_outputs("new.1.key", "new.1.value"),
        r"layers\.1\b",
    ),
]
