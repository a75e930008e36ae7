"""``text_encoder``: a question or text, attending the image -> hidden states or match logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from export.component import BATCH, TEXT_TOKENS, Case, Tensors, tensor
from export.components.layers import Projection, first_token, padding_mask
from export.components.text_layers import EncoderLayer, TextEmbeddings
from export.samples import Samples
from export.settings import ModelSettings


class TextEncoder(nn.Module):
    """Text layers with cross-attention over every image token."""

    def __init__(self, text_model: Any, head: nn.Linear | None) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(text_model.embeddings)
        self.layers = nn.ModuleList(
            EncoderLayer(layer, attends_image=True) for layer in text_model.encoder.layer
        )
        self.head = None if head is None else Projection.of(head)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, image_embeds: torch.Tensor
    ) -> torch.Tensor:
        """Ids and mask ``[batch, tokens]`` -> states ``[batch, tokens, hidden]`` or two logits."""
        hidden = self.embeddings(input_ids)
        mask = padding_mask(attention_mask)
        for layer in self.layers:
            hidden = layer(hidden, mask, image_embeds)
        if self.head is None:
            states: torch.Tensor = hidden
            return states
        logits: torch.Tensor = self.head(first_token(hidden))
        return logits


def tensors(settings: ModelSettings) -> Tensors:
    """See docs/manifest.md."""
    if settings.task == "itm":
        output = tensor("itm_logits", BATCH, 2)
    else:
        output = tensor("last_hidden_state", BATCH, TEXT_TOKENS, settings.hidden_size)
    return Tensors(
        inputs=(
            tensor("input_ids", BATCH, TEXT_TOKENS, dtype="int64"),
            tensor("attention_mask", BATCH, TEXT_TOKENS, dtype="int64"),
            tensor("image_embeds", BATCH, settings.image_tokens, settings.vision_hidden_size),
        ),
        outputs=(output,),
    )


def wrapper(model: Any, settings: ModelSettings) -> nn.Module:
    """The text encoder, with the matching head for image-text matching."""
    return TextEncoder(model.text_encoder, model.itm_head if settings.task == "itm" else None)


def cases(samples: Samples) -> Iterator[Case]:
    """Texts of several lengths, alone and padded; padded ones also against the unpadded run."""
    matching = samples.settings.task == "itm"
    output = "itm_logits" if matching else "last_hidden_state"

    def run(ids: torch.Tensor, mask: torch.Tensor | None, image: torch.Tensor) -> torch.Tensor:
        hidden = samples.encoded_text(ids, mask, image)
        result: torch.Tensor = samples.model.itm_head(hidden[:, 0, :]) if matching else hidden
        return result

    for index, (scene, ids) in enumerate(samples.texts()):
        image = samples.image_embeds(scene)
        unpadded = run(ids, None, image)
        real = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "image_embeds": image}
        yield Case(f"text_{index}", real, {output: unpadded})
        padded_ids, mask = samples.padded_right(ids, ids.shape[1] + 5)
        padded = {"input_ids": padded_ids, "attention_mask": mask, "image_embeds": image}
        model = {output: run(padded_ids, mask, image)}
        yield Case(f"text_{index}_padded", padded, model)
        yield Case(f"text_{index}_unpadded_model", padded, {output: unpadded}, stored=False)
    ids, mask, images = samples.text_batch()
    inputs = {"input_ids": ids, "attention_mask": mask, "image_embeds": images}
    yield Case("batch", inputs, {output: run(ids, mask, images)}, stored=False)
