"""``vision_projection``: image tokens -> unit-length image features for contrastive scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from export.component import BATCH, Case, Tensors, tensor
from export.components.layers import Projection, first_token
from export.samples import Samples
from export.settings import ModelSettings


class FirstTokenProjection(nn.Module):
    """Projects the first token and scales the result to unit length."""

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__()
        self.projection = Projection.of(projection)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, tokens, hidden]`` -> ``[batch, features]``."""
        projected: torch.Tensor = self.projection(first_token(hidden))
        # As torch.nn.functional.normalize, in operators every backend has.
        length = (projected * projected).sum(dim=-1, keepdim=True).sqrt().clamp(min=1e-12)
        return projected / length


def tensors(settings: ModelSettings) -> Tensors:
    """See docs/manifest.md."""
    return Tensors(
        inputs=(tensor("image_embeds", BATCH, settings.image_tokens, settings.vision_hidden_size),),
        outputs=(tensor("image_features", BATCH, settings.feature_size),),
    )


def wrapper(model: Any, settings: ModelSettings) -> nn.Module:  # noqa: ARG001 - interface
    """The vision projection."""
    return FirstTokenProjection(model.vision_proj)


def cases(samples: Samples) -> Iterator[Case]:
    """Single scenes, and all of them as one batch."""

    def case(name: str, embeds: torch.Tensor, *, stored: bool) -> Case:
        projected = samples.model.vision_proj(embeds[:, 0, :])
        features = nn.functional.normalize(projected, dim=-1)
        return Case(name, {"image_embeds": embeds}, {"image_features": features}, stored=stored)

    every = [samples.image_embeds(index) for index in range(samples.scene_count)]
    for index, embeds in enumerate(every):
        yield case(f"scene_{index}", embeds, stored=True)
    yield case("batch", torch.cat(every), stored=False)
