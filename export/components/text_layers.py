"""BERT-style text layers, shared by the text encoders and the text decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from export.components.layers import FeedForward, Projection, attend, split_heads


class TextEmbeddings(nn.Module):
    """Token plus position embeddings, normalised."""

    def __init__(self, embeddings: Any) -> None:
        super().__init__()
        self.tokens = embeddings.word_embeddings.weight
        self.positions = embeddings.position_embeddings.weight
        self.norm = embeddings.LayerNorm

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Ids ``[batch, tokens]`` -> ``[batch, tokens, hidden]``; positions default to 0, 1, ..."""
        tokens = nn.functional.embedding(input_ids, self.tokens)
        if position_ids is None:
            positions = self.positions[: input_ids.shape[1]]
        else:
            positions = nn.functional.embedding(position_ids, self.positions)
        hidden: torch.Tensor = self.norm(tokens + positions)
        return hidden


class SelfAttention(nn.Module):
    """Self-attention of one text layer, with residual and normalisation."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.head_size: int = attention.self.attention_head_size
        self.query = Projection.of(attention.self.query)
        self.key = Projection.of(attention.self.key)
        self.value = Projection.of(attention.self.value)
        self.output = Projection.of(attention.output.dense)
        self.norm = attention.output.LayerNorm

    def key_value(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """New key and value rows ``[batch, tokens, heads, head_size]``."""
        return (
            split_heads(self.key(hidden), self.head_size),
            split_heads(self.value(hidden), self.head_size),
        )

    def forward(
        self, hidden: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """``hidden`` ``[batch, tokens, hidden]`` attends ``key`` and ``value``; same shape out."""
        query = split_heads(self.query(hidden), self.head_size)
        attended: torch.Tensor = self.norm(self.output(attend(query, key, value, mask)) + hidden)
        return attended


class CrossAttention(nn.Module):
    """Cross-attention of one text layer over keys and values computed elsewhere."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.head_size: int = attention.self.attention_head_size
        self.query = Projection.of(attention.self.query)
        self.output = Projection.of(attention.output.dense)
        self.norm = attention.output.LayerNorm

    def forward(
        self,
        hidden: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``[batch, tokens, hidden]`` attends ``[batch, encoder_tokens, heads, head_size]``."""
        query = split_heads(self.query(hidden), self.head_size)
        attended: torch.Tensor = self.norm(self.output(attend(query, key, value, mask)) + hidden)
        return attended


class CrossKeyValue(nn.Module):
    """Keys and values of one layer's cross-attention."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.head_size: int = attention.self.attention_head_size
        self.key = Projection.of(attention.self.key)
        self.value = Projection.of(attention.self.value)

    def forward(self, encoder_hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``[batch, tokens, hidden]`` -> two of ``[batch, tokens, heads, head_size]``."""
        return (
            split_heads(self.key(encoder_hidden_states), self.head_size),
            split_heads(self.value(encoder_hidden_states), self.head_size),
        )


class TextFeedForward(nn.Module):
    """Feed-forward part of one text layer, with residual and normalisation."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.feed_forward = FeedForward(
            layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense
        )
        self.norm = layer.output.LayerNorm

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, tokens, hidden]`` -> same shape."""
        result: torch.Tensor = self.norm(self.feed_forward(hidden) + hidden)
        return result


class EncoderLayer(nn.Module):
    """One layer of a text encoder, with cross-attention over the image where asked for."""

    def __init__(self, layer: Any, *, attends_image: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(layer.attention)
        self.cross_key_value = CrossKeyValue(layer.crossattention) if attends_image else None
        self.cross_attention = CrossAttention(layer.crossattention) if attends_image else None
        self.feed_forward = TextFeedForward(layer)

    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor, image_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``[batch, tokens, hidden]`` -> same; every image token is real, so no cross mask."""
        key, value = self.attention.key_value(hidden)
        hidden = self.attention(hidden, key, value, mask)
        if self.cross_attention is not None and self.cross_key_value is not None:
            hidden = self.cross_attention(hidden, *self.cross_key_value(image_embeds))
        result: torch.Tensor = self.feed_forward(hidden)
        return result
