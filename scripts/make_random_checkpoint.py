"""Make a full-size BLIP checkpoint with random, nowhere degenerate weights.

For timing and size measurements without a model hub: real shapes, a valid tokenizer and image
processor, meaningless answers. ``python -m scripts.make_random_checkpoint --help``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import BlipConfig, BlipImageProcessorPil

from models.checkpoints.training.architecture import MODEL_CLASSES, TASKS
from models.checkpoints.training.checkpoint import (
    SPECIAL_TOKENS,
    build_tokenizer,
    save_checkpoint,
    word_pieces,
)
from pipeline.scenes import vocabulary

PIECES = 30522
"""Size of BERT's vocabulary; [DEC] and [ENC] follow it."""

_SPREAD = 0.02
_NORM_SPREAD = 0.1
_VISION: dict[str, dict[str, int]] = {
    "base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}


def main(arguments: list[str] | None = None) -> int:
    """Make one checkpoint; returns 2 for a combination that BLIP does not have."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=tuple(_VISION), default="base")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--layers", type=int, help="shrink the vision and text parts to this depth")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    console = Console()
    if options.size == "large" and options.task == "vqa":
        console.print(
            "--size large --task vqa: there is no such BLIP (its decoder attends to 768-wide "
            "question states; 'vqa-capfilt-large' has a base-size vision encoder). Use --size base."
        )
        return 2
    if options.image_size <= 0 or options.image_size % 16:
        console.print(f"--image-size {options.image_size}: must be a positive multiple of 16.")
        return 2
    config = full_size_config(options.size, options.image_size, options.layers)
    torch.manual_seed(options.seed)
    model = MODEL_CLASSES[options.task](config)
    randomise(model)
    side = {"height": options.image_size, "width": options.image_size}
    pieces = bert_like_pieces()
    tokenizer = build_tokenizer(pieces, 512)
    save_checkpoint(options.out, model, tokenizer, BlipImageProcessorPil(size=side), pieces)
    count = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"{options.out}: {count / 1e6:.1f} M parameters")
    return 0


def full_size_config(size: str, image_size: int, layers: int | None = None) -> Any:
    """Return the configuration of a published BLIP size, optionally with fewer layers."""
    vision = {**_VISION[size], "image_size": image_size, "patch_size": 16}
    text = {
        "vocab_size": PIECES + 2,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "encoder_hidden_size": vision["hidden_size"],
        "bos_token_id": PIECES,
        "eos_token_id": 2,
        "sep_token_id": 102,
        "pad_token_id": 0,
    }
    if layers is not None:
        vision["num_hidden_layers"] = text["num_hidden_layers"] = layers
    return BlipConfig(
        vision_config={**vision, "initializer_range": _SPREAD},
        text_config={**text, "initializer_range": _SPREAD},
        image_text_hidden_size=256,
        initializer_range=_SPREAD,
    )


def randomise(model: Any) -> None:
    """Draw every parameter anew; norms stay near one and zero, but none is exactly there."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower():
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, _NORM_SPREAD)
            else:
                parameter.normal_(0.0, _SPREAD)


def bert_like_pieces() -> list[str]:
    """Return 30522 pieces laid out as in BERT: the special tokens have BERT's own ids."""
    pieces = [f"[unused{index}]" for index in range(999)]
    for index, special in zip((0, 100, 101, 102, 103), SPECIAL_TOKENS, strict=True):
        pieces[index] = special
    known = word_pieces(vocabulary())
    pieces += [piece for piece in known if piece not in SPECIAL_TOKENS]
    return pieces + [f"filler{index}" for index in range(PIECES - len(pieces))]


if __name__ == "__main__":
    sys.exit(main())
