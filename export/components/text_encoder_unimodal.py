"""``text_encoder_unimodal``: a text by itself -> unit-length features for contrastive scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from export.component import BATCH, TEXT_TOKENS, Case, Tensors, tensor
from export.components.layers import padding_mask
from export.components.text_layers import EncoderLayer, TextEmbeddings
from export.components.vision_projection import FirstTokenProjection
from export.samples import Samples
from export.settings import ModelSettings


class UnimodalTextEncoder(nn.Module):
    """Text layers without cross-attention, and the projection of the first token."""

    def __init__(self, text_model: Any, projection: nn.Linear) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(text_model.embeddings)
        self.layers = nn.ModuleList(
            EncoderLayer(layer, attends_image=False) for layer in text_model.encoder.layer
        )
        self.features = FirstTokenProjection(projection)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Ids and mask ``[batch, tokens]`` -> ``[batch, features]``."""
        hidden = self.embeddings(input_ids)
        mask = padding_mask(attention_mask)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        features: torch.Tensor = self.features(hidden)
        return features


def tensors(settings: ModelSettings) -> Tensors:
    """See docs/manifest.md."""
    return Tensors(
        inputs=(
            tensor("input_ids", BATCH, TEXT_TOKENS, dtype="int64"),
            tensor("attention_mask", BATCH, TEXT_TOKENS, dtype="int64"),
        ),
        outputs=(tensor("text_features", BATCH, settings.feature_size),),
    )


def wrapper(model: Any, settings: ModelSettings) -> nn.Module:  # noqa: ARG001 - interface
    """The text encoder by itself with the text projection."""
    return UnimodalTextEncoder(model.text_encoder, model.text_proj)


def cases(samples: Samples) -> Iterator[Case]:
    """Texts of several lengths, alone and padded; padded ones also against the unpadded run."""

    def run(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        hidden = samples.encoded_text(ids, mask, None)
        projected = samples.model.text_proj(hidden[:, 0, :])
        return nn.functional.normalize(projected, dim=-1)

    for index, (_, ids) in enumerate(samples.texts()):
        unpadded = {"text_features": run(ids, None)}
        real = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        yield Case(f"text_{index}", real, unpadded)
        padded_ids, mask = samples.padded_right(ids, ids.shape[1] + 5)
        padded = {"input_ids": padded_ids, "attention_mask": mask}
        yield Case(f"text_{index}_padded", padded, {"text_features": run(padded_ids, mask)})
        yield Case(f"text_{index}_unpadded_model", padded, unpadded, stored=False)
    ids, mask, _ = samples.text_batch()
    inputs = {"input_ids": ids, "attention_mask": mask}
    yield Case("batch", inputs, {"text_features": run(ids, mask)}, stored=False)
