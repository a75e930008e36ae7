"""The three small BLIP models: configuration and non-degenerate initial weights."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
)

Task = Literal["caption", "vqa", "itm"]
TASKS: tuple[Task, ...] = ("caption", "vqa", "itm")
MODEL_CLASSES: dict[Task, Any] = {
    "caption": BlipForConditionalGeneration,
    "vqa": BlipForQuestionAnswering,
    "itm": BlipForImageTextRetrieval,
}

IMAGE_SIZE = 96
PATCH_SIZE = 12
HIDDEN_SIZE = 128
ATTENTION_HEADS = 2
INTERMEDIATE_SIZE = 512
VISION_LAYERS = 4
TEXT_LAYERS = 2
PROJECTION_SIZE = 64
MAX_TOKENS = 64
INITIALIZER_RANGE = 0.02
VISION_POSITION_SPREAD = 0.4
TEXT_POSITION_GAIN = 3.0


def reference_config(vocabulary_size: int, separator: int) -> Any:
    """Return the configuration shared by the three models; [DEC] is the last id but one."""
    shared = {
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_attention_heads": ATTENTION_HEADS,
        "initializer_range": INITIALIZER_RANGE,
    }
    return BlipConfig(
        text_config={
            **shared,
            "vocab_size": vocabulary_size,
            "encoder_hidden_size": HIDDEN_SIZE,
            "num_hidden_layers": TEXT_LAYERS,
            "projection_dim": HIDDEN_SIZE,
            "max_position_embeddings": MAX_TOKENS,
            "bos_token_id": vocabulary_size - 2,
            "eos_token_id": 2,
            "sep_token_id": separator,
            "pad_token_id": 0,
        },
        vision_config={
            **shared,
            "num_hidden_layers": VISION_LAYERS,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "projection_dim": HIDDEN_SIZE,
        },
        projection_dim=HIDDEN_SIZE,
        image_text_hidden_size=PROJECTION_SIZE,
        initializer_range=INITIALIZER_RANGE,
    )


def build_models(config: Any, seed: int) -> dict[Task, Any]:
    """Build the three models on one vision encoder, which they share while they are trained."""
    torch.manual_seed(seed)
    models: dict[Task, Any] = {}
    for task in TASKS:
        models[task] = MODEL_CLASSES[task](config)
        reinitialise(models[task])
    for task in ("vqa", "itm"):
        models[task].vision_model = models["caption"].vision_model
    return models


def reinitialise(model: Any) -> None:
    """Give every matrix and embedding a spread that trains; leaves norms at one and zero.

    The positions get most: next to the patches' and words' own content a small spread is lost,
    and everything about places and word order is learned late.
    """
    for name, parameter in model.named_parameters():
        if "norm" in name.lower() or name.endswith("bias"):
            continue
        if "embedding" in name and "patch" not in name:
            torch.nn.init.normal_(parameter, std=INITIALIZER_RANGE)
            if name.endswith("vision_model.embeddings.position_embedding"):
                parameter.data[0, 1:] += VISION_POSITION_SPREAD * wave_positions()
            elif name.endswith("position_embeddings.weight"):
                parameter.data *= TEXT_POSITION_GAIN
        else:
            fan_in = parameter[0].numel()
            torch.nn.init.normal_(parameter, std=fan_in**-0.5 * 0.7)


def wave_positions() -> torch.Tensor:
    """Return waves over rows and columns, float32 ``[patches, C]`` of zero mean and unit spread."""
    side = IMAGE_SIZE // PATCH_SIZE
    falling = torch.linspace(0.0, -1.0, HIDDEN_SIZE // 4)
    angles = (torch.arange(side) + 0.5)[:, None] * (torch.pi * side**falling)[None, :]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    table = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    table = table - table.mean(dim=0)
    return table / table.std()


def reference_image_processor() -> Any:
    """Return the Pillow image processor: 96 x 96, bicubic, the mean and spread of CLIP."""
    return BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
