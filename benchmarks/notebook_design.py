"""The public OpenVINO notebook's design of BLIP, built from the same checkpoint.

Three IRs converted from HuggingFace's own modules: the vision encoder, the question encoder (vqa)
and one text decoder with past. The decoder gets the encoder's hidden states at every call and so
computes the cross-attention keys and values anew at every token; its whole past goes in and comes
out of the model each time. Weights are stored in FP16 and the device computes in its default
precision.

https://github.com/openvinotoolkit/openvino_notebooks, notebooks/blip-visual-language-processing.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.runners.base import RunnerOptions
from benchmarks.runners.torch_eager import load_checkpoint
from pipeline.build import tool_versions
from pipeline.sources import source_digest
from pipeline.work_cache import cached

#: Which IRs a task has.
PARTS = {
    "caption": ("vision", "decoder"),
    "vqa": ("vision", "text_encoder", "decoder"),
}


def built(options: RunnerOptions, weights_sha256: str) -> Path:
    """The folder of the design's IRs, converted now unless this checkpoint's are there.

    Args:
        options: task, checkpoint and the bench's work folder.
        weights_sha256: digest of the checkpoint's weights.

    Raises:
        RuntimeError: the checkpoint cannot be converted.
    """
    key = {
        "weights": weights_sha256,
        "task": options.task,
        "sources": source_digest("benchmarks.notebook_design"),
        "tools": tool_versions("torch", "transformers", "openvino"),
    }
    return cached(options.work / "notebook", options.task, key, partial(_convert, options))


def _convert(options: RunnerOptions, folder: Path) -> None:
    import openvino

    torch, model = load_checkpoint(options)
    config = model.config
    image = config.vision_config.image_size
    tokens = (image // config.vision_config.patch_size) ** 2 + 1
    pixels = torch.zeros(1, 3, image, image)
    model.vision_model.config.return_dict = True
    states = torch.zeros(1, tokens, config.vision_config.hidden_size)
    with torch.inference_mode():
        _save(
            openvino,
            _vision(torch, model),
            (pixels,),
            folder / "vision.xml",
            [[-1, 3, image, image]],
        )
        if options.task == "vqa":
            ids = torch.ones(1, 5, dtype=torch.long)
            _save(
                openvino,
                _question(torch, model),
                (ids, torch.ones_like(ids), states),
                folder / "text_encoder.xml",
                [[-1, -1], [-1, -1], [-1, tokens, states.shape[-1]]],
            )
            states = torch.zeros(1, 5, config.text_config.hidden_size)
        text = config.text_config
        heads = text.num_attention_heads
        size = text.hidden_size // heads
        past = [torch.zeros(1, heads, 3, size) for _ in range(2 * text.num_hidden_layers)]
        ids = torch.ones(1, 2, dtype=torch.long)
        encoder = -1 if options.task == "vqa" else tokens
        _save(
            openvino,
            _decoder(torch, model),
            (ids, torch.ones(1, 5, dtype=torch.long), states, *past),
            folder / "decoder.xml",
            [[-1, -1], [-1, -1], [-1, encoder, states.shape[-1]]]
            + [[-1, heads, -1, size]] * len(past),
        )


def _save(openvino: Any, module: Any, example: tuple[Any, ...], path: Path, shapes: Any) -> None:
    converted = openvino.convert_model(module, example_input=example)
    ports = converted.inputs
    if len(ports) != len(shapes):
        raise RuntimeError(
            f"{path.stem}: {len(ports)} inputs instead of {len(shapes)} after tracing"
        )
    converted.reshape(
        {port: openvino.PartialShape(s) for port, s in zip(ports, shapes, strict=True)}
    )
    openvino.save_model(converted, path, compress_to_fp16=True)


def _vision(torch: Any, model: Any) -> Any:
    class Vision(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.vision_model = model.vision_model

        def forward(self, pixel_values: Any) -> Any:
            return self.vision_model(pixel_values=pixel_values).last_hidden_state

    return Vision().eval()


def _question(torch: Any, model: Any) -> Any:
    class Question(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.text_encoder = model.text_encoder

        def forward(self, input_ids: Any, attention_mask: Any, image_embeds: Any) -> Any:
            return self.text_encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                encoder_hidden_states=image_embeds,
            ).last_hidden_state

    return Question().eval()


def _decoder(torch: Any, model: Any) -> Any:
    from transformers import cache_utils

    dynamic: Any = cache_utils.DynamicLayer

    class Layer(dynamic):  # type: ignore[misc]
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

    class Decoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.text_decoder = model.text_decoder

        def forward(self, input_ids: Any, attention_mask: Any, states: Any, *past: Any) -> Any:
            # The cross part of the cache starts empty at every call: that is the design.
            own, cross = cache_utils.DynamicCache(), cache_utils.DynamicCache()
            layers = len(past) // 2
            own.layers = [Layer() for _ in range(layers)]
            cross.layers = [Layer() for _ in range(layers)]
            for layer in range(layers):
                own.update(past[2 * layer], past[2 * layer + 1], layer)
            cache = cache_utils.EncoderDecoderCache(own, cross)
            logits = self.text_decoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                encoder_hidden_states=states,
                past_key_values=cache,
                use_cache=True,
                is_decoder=True,
            ).logits
            present = [tensor for layer in own.layers for tensor in (layer.keys, layer.values)]
            return (logits, *present)

    return Decoder().eval()
