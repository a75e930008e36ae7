"""What a component module offers: tensors, a wrapper around the checkpoint, reference cases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import nn

from export.samples import Samples
from export.settings import ModelSettings
from pipeline.manifest import TensorSpec

#: names of dynamic axes (docs/manifest.md)
BATCH = "batch"
TEXT_TOKENS = "text_tokens"
PAST_TOKENS = "past_tokens"
TOTAL_TOKENS = "total_tokens"
ENCODER_TOKENS = "encoder_tokens"


def tensor(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    """A contract tensor; axis names stand for dynamic axes."""
    return TensorSpec(name=name, artifact_name=name, shape=shape, dtype=dtype)


@dataclass(frozen=True)
class Case:
    """One real input with what the unmodified HuggingFace modules make of it."""

    name: str
    inputs: dict[str, torch.Tensor]
    #: outputs by contract name; one that is left out has no counterpart in HuggingFace's run
    model: dict[str, torch.Tensor]
    #: which rows of axis 1 a shorter (unpadded) model output is compared with
    padding: Literal["left", "right"] = "right"
    #: whether the case goes into the reference file; the others are only checked
    stored: bool = True


@dataclass(frozen=True)
class Tensors:
    """Inputs and outputs of a component, in call order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    #: buffers of the wrapper that a caller of the graph may replace: inputs with a default
    optional: tuple[TensorSpec, ...] = ()
    #: lengths of dynamic axes while tracing: distinct, so that none is taken for another
    example_lengths: dict[str, int] = field(
        default_factory=lambda: {
            BATCH: 2,
            TEXT_TOKENS: 3,
            PAST_TOKENS: 5,
            TOTAL_TOKENS: 8,
            ENCODER_TOKENS: 7,
        }
    )

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Inputs to trace with; their values decide nothing."""
        generator = torch.Generator().manual_seed(0)
        values = []
        for spec in self.inputs:
            shape = [self.example_lengths[n] if isinstance(n, str) else n for n in spec.shape]
            if spec.dtype == "int64":
                values.append(torch.ones(shape, dtype=torch.int64))
            else:
                values.append(torch.randn(shape, generator=generator))
        return tuple(values)


class ComponentModule(Protocol):
    """The interface of every module in export/components that exports a component."""

    def tensors(self, settings: ModelSettings) -> Tensors:
        """Names, shapes and dtypes of the component."""

    def wrapper(self, model: nn.Module, settings: ModelSettings) -> nn.Module:
        """The module to trace: takes and returns the contract's tensors in order."""

    def cases(self, samples: Samples) -> Iterator[Case]:
        """Real inputs with the checkpoint's own outputs, most important first."""
