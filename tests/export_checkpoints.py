"""Small BLIP checkpoints with random but nowhere degenerate weights, for the export tests.

HuggingFace's own initialisation is near zero and its norms are exactly one and zero: every wrapper
would pass on such weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers import BertTokenizerFast, BlipConfig, BlipImageProcessorPil

from pipeline.scenes import vocabulary

ARCHITECTURES = {
    "caption": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "itm": "BlipForImageTextRetrieval",
}


@dataclass(frozen=True)
class Sizes:
    image: int = 32
    patch: int = 8
    vision_width: int = 32
    vision_heads: int = 2
    vision_layers: int = 2
    text_width: int = 32
    text_heads: int = 2
    text_layers: int = 2
    positions: int = 40
    features: int = 12
    tied: bool = True
    #: further keys of text_config and of vision_config
    text: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] = field(default_factory=dict)


def pieces() -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *vocabulary(), *letters, *(f"##{letter}" for letter in letters)]
    return list(dict.fromkeys(words))


def make_config(sizes: Sizes) -> Any:
    count = len(pieces()) + 2
    return BlipConfig(
        text_config={
            "vocab_size": count,
            "hidden_size": sizes.text_width,
            "intermediate_size": sizes.text_width * 2,
            "num_attention_heads": sizes.text_heads,
            "num_hidden_layers": sizes.text_layers,
            "max_position_embeddings": sizes.positions,
            "bos_token_id": count - 2,
            "sep_token_id": 3,
            "pad_token_id": 0,
            "tie_word_embeddings": sizes.tied,
            **sizes.text,
        },
        vision_config={
            "image_size": sizes.image,
            "patch_size": sizes.patch,
            "hidden_size": sizes.vision_width,
            "intermediate_size": sizes.vision_width * 2,
            "num_attention_heads": sizes.vision_heads,
            "num_hidden_layers": sizes.vision_layers,
            **sizes.vision,
        },
        image_text_hidden_size=sizes.features,
        tie_word_embeddings=sizes.tied,
    )


def make_model(task: str, sizes: Sizes, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = getattr(transformers, ARCHITECTURES[task])(make_config(sizes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.normal_(1.0, 0.3)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            else:
                parameter.normal_(0.0, 1.5 * parameter[0].numel() ** -0.5)
    return model.eval()


def save_processor(folder: Path, sizes: Sizes) -> None:
    tokenizer = BertTokenizerFast(
        vocab={piece: index for index, piece in enumerate(pieces())},
        do_lower_case=True,
        bos_token="[DEC]",  # noqa: S106 - a token of text
        additional_special_tokens=["[ENC]"],
    )
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": sizes.image, "width": sizes.image}).save_pretrained(
        folder
    )


def make_checkpoint(
    folder: Path, task: str, sizes: Sizes | None = None, **save_options: Any
) -> Path:
    sizes = sizes or Sizes()
    make_model(task, sizes).save_pretrained(folder, **save_options)
    save_processor(folder, sizes)
    return folder


def write_pipeline(folder: Path, checkpoints: dict[str, Path | str], **changes: Any) -> Path:
    """A pipeline file over the given checkpoints, with artifacts below ``folder``."""
    shapes = {
        "caption": {"text_tokens": 8, "past_tokens": 20},
        "vqa": {"text_tokens": 24, "past_tokens": 15},
        "itm": {"text_tokens": 24},
    }
    tasks = {
        task: {"checkpoint": str(source), "shapes": shapes[task], **changes.get(task, {})}
        for task, source in checkpoints.items()
    }
    data = {
        "name": "test",
        "artifacts": str(folder / "artifacts"),
        "tasks": tasks,
        "targets": {"openvino": {"precisions": ["f16"]}},
        "verify": {"tokens": {"onnx": {"scenes": 1}}},
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    return path
