"""``cross_key_values``: encoder states -> the decoder's cross-attention keys and values.

A component of its own because they are constant for an image or question: computed once, they serve
the first pass, every later token, every beam and every question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from export.component import BATCH, ENCODER_TOKENS, Case, Tensors, tensor
from export.components.text_layers import CrossKeyValue
from export.samples import Samples
from export.settings import ModelSettings


class CrossKeyValues(nn.Module):
    """Cross-attention keys and values of all decoder layers."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CrossKeyValue(layer.crossattention) for layer in decoder.bert.encoder.layer
        )

    def forward(self, encoder_hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """``[batch, encoder_tokens, hidden]`` -> key and value of each layer in turn."""
        return tuple(part for layer in self.layers for part in layer(encoder_hidden_states))


def key_value_tensors(prefix: str, tokens: str, settings: ModelSettings) -> tuple[Any, ...]:
    """``<prefix>.<layer>.key`` and ``.value``, each ``[batch, tokens, heads, head_size]``."""
    return tuple(
        tensor(f"{prefix}.{layer}.{part}", BATCH, tokens, settings.heads, settings.head_size)
        for layer in range(settings.layers)
        for part in ("key", "value")
    )


def tensors(settings: ModelSettings) -> Tensors:
    """See docs/manifest.md."""
    hidden = settings.encoder_hidden_size
    return Tensors(
        inputs=(tensor("encoder_hidden_states", BATCH, ENCODER_TOKENS, hidden),),
        outputs=key_value_tensors("cross", ENCODER_TOKENS, settings),
    )


def wrapper(model: Any, settings: ModelSettings) -> nn.Module:  # noqa: ARG001 - interface
    """The cross-attention keys and values of the text decoder."""
    return CrossKeyValues(model.text_decoder)


def cases(samples: Samples) -> Iterator[Case]:
    """What HuggingFace's own cache holds after a decoder pass over real encoder states."""
    for index, states in enumerate(samples.encoder_states):
        inputs = {"encoder_hidden_states": states}
        yield Case(f"states_{index}", inputs, samples.cross(states))
    states, _ = samples.encoder_batch()
    inputs = {"encoder_hidden_states": states}
    yield Case("batch", inputs, samples.cross(states), stored=False)
