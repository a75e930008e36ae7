"""The least time that this machine needs for a caption, from what it reaches at its best.

    floor = operations(vision encoder, cross keys and values) / matrix-product rate
          + decoder passes x bytes read per pass / read bandwidth

The first term is bound by arithmetic: hundreds of rows share each weight. The second by memory: a
pass over one row reads every weight of the decoder and the cross keys and values once. The prompt's
pass counts as one pass. Softmax, normalisation, embeddings and the self-attention cache are left
out: they are small, and leaving them out makes the floor lower, so the reached share is not
flattered.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from benchmarks.schedule import NEW_TOKENS
from configs.layout import checkpoint_folder

#: Mode -> (type whose matrix-product rate bounds the vision part, bytes per decoder weight, bytes
#: per cross key or value). ``exact`` keeps FP16 weights and computes in float32.
MODE_TYPES = {
    "exact": ("f32", 2.0, 4.0),
    "fast": ("bf16", 2.0, 2.0),
    "int8": ("int8", 1.0, 2.0),
    # Vision stays INT8; groups of INT4 weights carry scales, which are not counted.
    "int4": ("int8", 0.5, 2.0),
}


@dataclass(frozen=True)
class Work:
    """What one captioned image costs at least."""

    #: of the vision encoder and the cross-attention projections, two per multiplication and
    #: addition
    vision_operations: float
    #: weights that each decoder pass reads
    step_weights: float
    #: cross keys and values that each decoder pass reads
    cross_values: float
    passes: int

    def floor_s(self, mode: str, rates: dict[str, float], bandwidth: float) -> float:
        """Seconds, for rates in operations per second and a bandwidth in bytes per second."""
        kind, weight_bytes, cross_bytes = MODE_TYPES[mode]
        step_bytes = self.step_weights * weight_bytes + self.cross_values * cross_bytes
        return self.vision_operations / rates[kind] + self.passes * step_bytes / bandwidth


def caption_work(vision: dict[str, Any], text: dict[str, Any], passes: int = NEW_TOKENS) -> Work:
    """The work of one image, from the two parts of a BLIP configuration.

    Args:
        vision: ``vision_config``: hidden_size, num_hidden_layers, intermediate_size, image_size,
        patch_size. text: ``text_config``: hidden_size, num_hidden_layers, intermediate_size,
        vocab_size. passes: decoder calls per caption.
    """
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    rows, width = patches + 1, vision["hidden_size"]
    linear = 4 * width * width + 2 * width * vision["intermediate_size"]
    attention = 2 * rows * width  # scores, then the weighted sum
    encoder = vision["num_hidden_layers"] * rows * (linear + attention)
    embedding = patches * 3 * vision["patch_size"] ** 2 * width
    size, layers = text["hidden_size"], text["num_hidden_layers"]
    cross = rows * layers * 2 * width * size
    # Self-attention has four projections, cross-attention two: its keys and values are computed
    # once.
    decoder = layers * (6 * size * size + 2 * size * text["intermediate_size"])
    head = size * size + size * text["vocab_size"]
    return Work(
        vision_operations=2.0 * (encoder + embedding + cross),
        step_weights=float(decoder + head),
        cross_values=float(2 * layers * rows * size),
        passes=passes,
    )


def checkpoint_configuration(
    source: str, revision: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """``vision_config`` and ``text_config`` of a checkpoint, its defaults filled in."""
    from transformers import BlipConfig

    folder = checkpoint_folder(source)
    if folder is not None:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = BlipConfig(**raw)
    else:
        config = BlipConfig.from_pretrained(source, **({"revision": revision} if revision else {}))
    return config.vision_config.to_dict(), config.text_config.to_dict()
