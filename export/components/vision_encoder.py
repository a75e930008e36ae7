"""``vision_encoder``: pixels -> image tokens (ViT with separate query, key and value weights)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from export.component import BATCH, Case, Tensors, tensor
from export.components.layers import (
    FeedForward,
    Projection,
    attend,
    flatten_last,
    repeat_for_batch,
    split_heads,
)
from export.samples import Samples
from export.settings import ModelSettings


class VisionAttention(nn.Module):
    """Self-attention of one vision layer; the checkpoint's joint weight is split in three."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.head_size: int = attention.head_dim
        weights = attention.qkv.weight.chunk(3)
        biases = (None,) * 3 if attention.qkv.bias is None else attention.qkv.bias.chunk(3)
        self.query, self.key, self.value = map(Projection, weights, biases)
        self.output = Projection.of(attention.projection)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, tokens, hidden]`` -> same shape."""
        query, key, value = (
            split_heads(projection(hidden), self.head_size)
            for projection in (self.query, self.key, self.value)
        )
        result: torch.Tensor = self.output(attend(query, key, value))
        return result


class VisionLayer(nn.Module):
    """One pre-normalised vision layer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attention_norm = layer.layer_norm1
        self.attention = VisionAttention(layer.self_attn)
        self.feed_forward_norm = layer.layer_norm2
        self.feed_forward = FeedForward(layer.mlp.fc1, layer.mlp.activation_fn, layer.mlp.fc2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, tokens, hidden]`` -> same shape."""
        hidden = self.attention(self.attention_norm(hidden)) + hidden
        result: torch.Tensor = self.feed_forward(self.feed_forward_norm(hidden)) + hidden
        return result


class VisionEncoder(nn.Module):
    """Patches, positions, layers and the last normalisation."""

    def __init__(self, vision_model: Any) -> None:
        super().__init__()
        embeddings = vision_model.embeddings
        self.patches = embeddings.patch_embedding
        self.class_token = embeddings.class_embedding
        self.positions = embeddings.position_embedding
        self.layers = nn.ModuleList(VisionLayer(layer) for layer in vision_model.encoder.layers)
        self.norm = vision_model.post_layernorm

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """``pixel_values`` ``[batch, 3, image, image]`` -> ``[batch, image_tokens, hidden]``."""
        patches = flatten_last(self.patches(pixel_values)).transpose(1, 2)
        tokens = torch.cat([repeat_for_batch(self.class_token, pixel_values), patches], dim=1)
        hidden = tokens + self.positions
        for layer in self.layers:
            hidden = layer(hidden)
        result: torch.Tensor = self.norm(hidden)
        return result


def tensors(settings: ModelSettings) -> Tensors:
    """See docs/manifest.md."""
    size = settings.image_size
    return Tensors(
        inputs=(tensor("pixel_values", BATCH, 3, size, size),),
        example_lengths={BATCH: 1},
        outputs=(
            tensor("image_embeds", BATCH, settings.image_tokens, settings.vision_hidden_size),
        ),
    )


def wrapper(model: Any, settings: ModelSettings) -> nn.Module:  # noqa: ARG001 - interface
    """The vision tower."""
    return VisionEncoder(model.vision_model)


def cases(samples: Samples) -> Iterator[Case]:
    """Single scenes."""
    for index in range(samples.scene_count):
        yield Case(
            f"scene_{index}",
            {"pixel_values": samples.pixel_values(index)},
            {"image_embeds": samples.image_embeds(index)},
        )
