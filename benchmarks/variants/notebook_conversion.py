"""Converts a checkpoint as the public OpenVINO notebook does.

Three IRs from HuggingFace's own modules: the vision encoder, the question encoder (vqa) and one
text decoder with past. The decoder gets the encoder's hidden states at every call and so computes
the cross-attention keys and values anew at every token; its whole past goes in and comes out of
the model each time. Weights are stored in FP16 and the device computes in its default precision.

https://github.com/openvinotoolkit/openvino_notebooks, notebooks/blip-visual-language-processing.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import openvino
import torch
from torch import Tensor, nn
from transformers import cache_utils

from benchmarks.variants.base import VariantOptions
from pipeline.build import tool_versions
from pipeline.manifest import TaskManifest, read_manifest
from pipeline.sources import source_digest
from pipeline.work_cache import cached
from verify.checkpoint.checkpoint import load_model


def converted(options: VariantOptions) -> Path:
    """The folder of the design's IRs, converted now unless this checkpoint's are there."""
    manifest = read_manifest(TaskManifest, options.artifacts / "manifest.json")
    key = {
        "weights": manifest.checkpoint.weights_sha256,
        "sources": source_digest("benchmarks.variants.notebook_conversion"),
        "tools": tool_versions("torch", "transformers", "openvino"),
    }
    return cached(options.work / "notebook", options.task, key, partial(_convert, options))


def _convert(options: VariantOptions, folder: Path) -> None:
    model = load_model(options.task, options.checkpoint, options.revision)
    vision, text = model.config.vision_config, model.config.text_config
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    model.vision_model.config.return_dict = True
    pixels = torch.zeros(1, 3, vision.image_size, vision.image_size)
    states = torch.zeros(1, tokens, vision.hidden_size)
    ids = torch.ones(1, 5, dtype=torch.long)
    heads = text.num_attention_heads
    past = [torch.zeros(1, heads, 3, text.hidden_size // heads)] * (2 * text.num_hidden_layers)
    past_shape = [-1, heads, -1, text.hidden_size // heads]
    with torch.inference_mode():
        _save(folder / "vision.xml", _Vision(model), (pixels,), [[-1, *pixels.shape[1:]]])
        if options.task == "vqa":
            shapes = [[-1, -1], [-1, -1], [-1, *states.shape[1:]]]
            texts = (ids, torch.ones_like(ids), states)
            _save(folder / "text_encoder.xml", _Question(model), texts, shapes)
            states, tokens = torch.zeros(1, 5, text.hidden_size), -1
        shapes = [[-1, -1], [-1, -1], [-1, tokens, states.shape[-1]], *([past_shape] * len(past))]
        arguments = (ids[:, :2], torch.ones_like(ids), states, *past)
        _save(folder / "decoder.xml", _Decoder(model), arguments, shapes)


def _save(
    path: Path, module: nn.Module, example: tuple[Tensor, ...], shapes: list[list[int]]
) -> None:
    ir = openvino.convert_model(module.eval(), example_input=example)
    if len(ir.inputs) != len(shapes):
        raise RuntimeError(f"{path.stem}: {len(ir.inputs)} inputs, expected {len(shapes)}")
    partial = [openvino.PartialShape(shape) for shape in shapes]
    ir.reshape(dict(zip(ir.inputs, partial, strict=True)))
    openvino.save_model(ir, path, compress_to_fp16=True)


class _Vision(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.vision_model

    def forward(self, pixel_values: Tensor) -> Any:
        return self.model(pixel_values=pixel_values).last_hidden_state


class _Question(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.text_encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_embeds: Tensor) -> Any:
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=image_embeds
        ).last_hidden_state


class _Layer(cache_utils.DynamicLayer):  # type: ignore[misc]
    """Begins with what it is given: HuggingFace's begins with a concatenation to nothing."""

    keys: Any
    values: Any
    is_initialized: bool

    def update(self, keys: Any, values: Any, *_: Any, **__: Any) -> Any:
        empty = not self.is_initialized
        self.keys = keys if empty else torch.cat([self.keys, keys], dim=-2)
        self.values = values if empty else torch.cat([self.values, values], dim=-2)
        self.is_initialized = True
        return self.keys, self.values


class _Decoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.text_decoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, states: Tensor, *past: Tensor
    ) -> Any:
        # The cross part of the cache starts empty at every call: that is the design.
        own, cross = cache_utils.DynamicCache(), cache_utils.DynamicCache()
        own.layers = [_Layer() for _ in past[::2]]
        cross.layers = [_Layer() for _ in past[::2]]
        for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
            own.update(keys, values, layer)
        logits = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=states,
            past_key_values=cache_utils.EncoderDecoderCache(own, cross),
            use_cache=True,
            is_decoder=True,
        ).logits
        return (logits, *(item for layer in own.layers for item in (layer.keys, layer.values)))
