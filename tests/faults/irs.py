"""Defects of OpenVINO IRs beside right exported graphs, as a buggy converter would make them."""

from __future__ import annotations

from tests.faults.fault import Fault, ir_fault, ir_file_fault
from tests.faults.graph_changes import heads_swapped, noise, row_off, truncated
from tests.faults.ir_changes import (
    after,
    coarse,
    dropped,
    epsilon,
    first_row,
    mapping,
    of_another_task,
    overflowing,
    saturated,
    scalar,
    swap,
    tanh_gelu,
    weight,
)

_VISION, _DECODER, _TEXT = "vision_encoder", "text_decoder", "text_encoder"

IR_FAULTS: list[Fault] = [
    ir_fault(
        "one layer's weights off by 1 %",
        "caption",
        _VISION,
        weight("layers.3.attention.value.weight", noise(0.01)),
        r"layers\.3\.attention\.value",
    ),
    ir_fault(
        "one layer scaled by 1.01",
        "vqa",
        _DECODER,
        weight("layers.0.cross_attention.output.weight", lambda a: a * 1.01),
        r"layers\.0\.cross_attention\.output",
    ),
    ir_fault(
        "one layer truncated to bf16",
        "itm",
        _TEXT,
        weight("layers.1.feed_forward.feed_forward.outer.weight", truncated),
        r"layers\.1\.feed_forward\.feed_forward\.outer",
    ),
    ir_fault(
        "keys and values swapped",
        "caption",
        _DECODER,
        swap("layers.1.attention.key.weight", "layers.1.attention.value.weight"),
        r"layers\.1\.attention\.(key|value)",
    ),
    ir_file_fault(
        "cross values of two layers swapped",
        "caption",
        _DECODER,
        mapping(_DECODER, "inputs", "cross.0.value", "cross.1.value"),
        r"layers\.(0|1)",
    ),
    ir_file_fault(
        "cross keys and values swapped",
        "vqa",
        "cross_key_values",
        mapping("cross_key_values", "outputs", "cross.0.key", "cross.0.value"),
        r"layers\.0",
    ),
    ir_file_fault(
        "file of another checkpoint", "vqa", _VISION, of_another_task(_VISION, "caption"), r""
    ),
    ir_fault(
        "heads swapped",
        "vqa",
        "cross_key_values",
        weight("layers.1.value.weight", heads_swapped),
        r"layers\.1\.value",
    ),
    ir_fault(
        "threshold saturated",
        "caption",
        _VISION,
        after("/layers.2/feed_forward/activation/Mul_1", saturated),
        r"layers\.2\.feed_forward\.activation",
    ),
    ir_fault(
        "INT8 range too wide",
        "vqa",
        _TEXT,
        after("/layers.0/attention/norm/LayerNormalization", coarse),
        r"layers\.0\.attention\.norm",
    ),
    ir_fault(
        "f16 overflow",
        "caption",
        _DECODER,
        after("/layers.1/feed_forward/feed_forward/inner/Add", overflowing),
        r"layers\.1\.feed_forward\.feed_forward\.inner",
    ),
    ir_fault(
        "LayerNorm epsilon 1e-4", "caption", _VISION, epsilon(1e-4), r"layers\.1\.feed_forward_norm"
    ),
    ir_fault(
        "tanh GELU",
        "caption",
        _DECODER,
        tanh_gelu("/layers.0/feed_forward/feed_forward/activation"),
        r"layers\.0\.feed_forward\.feed_forward\.activation",
    ),
    ir_fault(
        "residual dropped",
        "itm",
        _VISION,
        dropped("/layers.2/Add", 1),
        r"layers\.2",
    ),
    ir_fault("mask constant -5", "vqa", _TEXT, scalar("/Mul", lambda _: -5.0), r"graph"),
    ir_fault(
        "scale is not 1/sqrt(d)",
        "caption",
        _VISION,
        scalar("/layers.1/attention/Mul", lambda v: v * 0.9),
        r"layers\.1\.attention",
    ),
    ir_fault(
        "mask not added",
        "vqa",
        _DECODER,
        dropped("/layers.1/cross_attention/Add", 0),
        r"layers\.1\.cross_attention",
    ),
    ir_fault(
        "bias missing",
        "itm",
        "text_encoder_unimodal",
        weight("features.projection.bias", lambda a: a * 0),
        r"features\.projection",
    ),
    ir_fault(
        "last LayerNorm's weights off",
        "vqa",
        _VISION,
        weight("norm.weight", lambda a: a * 1.002),
        r"norm",
    ),
    ir_fault(
        "query bias zeroed",
        "caption",
        _DECODER,
        weight("layers.1.attention.query.bias", lambda a: a * 0),
        r"layers\.1\.attention\.query",
    ),
    ir_fault(
        "attention scale missing in one layer",
        "itm",
        _TEXT,
        scalar("/layers.1/attention/Mul", lambda _: 1.0),
        r"layers\.1\.attention",
    ),
    ir_fault(
        "text positions off by one",
        "vqa",
        _TEXT,
        weight("embeddings.positions", row_off),
        r"embeddings",
    ),
    ir_fault(
        "two rows of the vocabulary swapped",
        "caption",
        _DECODER,
        weight("embeddings.tokens", lambda a: a[[*range(150), 151, 150, *range(152, len(a))]]),
        r"(embeddings\.tokens|embeddings|head)",
    ),
    ir_fault(
        "patch weights expect BGR",
        "itm",
        _VISION,
        weight("patches.weight", lambda a: a[:, ::-1]),
        r"patches",
    ),
    ir_fault(
        "cross-attention skipped",
        "caption",
        _DECODER,
        dropped("/layers.0/cross_attention/Add", 1),
        r"layers\.0\.cross_attention",
    ),
    ir_fault(
        "rows of a batch share the first one's mask",
        "vqa",
        _TEXT,
        first_row("attention_mask"),
        r"",
    ),
    ir_fault(
        "rows of a batch share the first one's image",
        "itm",
        _TEXT,
        first_row("image_embeds"),
        r"layers\.\d\.cross",
    ),
    ir_fault(
        "tanh GELU in a text encoder",
        "vqa",
        _TEXT,
        tanh_gelu("/layers.1/feed_forward/feed_forward/activation"),
        r"layers\.1\.feed_forward\.feed_forward\.activation",
    ),
]
