"""Building blocks of the exported graphs: our own forward over the checkpoint's parameters.

Every shape choice here is what the TPU compiler's attention fusions recognise: keys and values in
``[batch, tokens, heads, head_size]``, joined on axis 1 and only then transposed with
``(0, 2, 1, 3)``; the scale multiplies the scores; the mask is the second operand of an addition.
Reshapes copy leading dimensions (``0``) instead of computing them, so a graph with dynamic axes
holds no shape arithmetic around its attentions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

#: added to a score where attention is not allowed: finite, because an infinity turns into NaN in
#: half precision, and far below any real score
MASKED = -10000.0


class _SplitHeads(torch.autograd.Function):
    """``[batch, tokens, heads * head_size]`` -> ``[batch, tokens, heads, head_size]``."""

    @staticmethod
    def forward(_context: Any, value: torch.Tensor, head_size: int) -> torch.Tensor:
        return value.reshape(*value.shape[:-1], -1, head_size)

    @staticmethod
    def symbolic(graph: Any, value: Any, head_size: int) -> Any:
        shape = graph.op("Constant", value_t=torch.tensor([0, 0, -1, head_size]))
        return graph.op("Reshape", value, shape)


class _FlattenLast(torch.autograd.Function):
    """``[a, b, c, d]`` -> ``[a, b, c * d]``."""

    @staticmethod
    def forward(_context: Any, value: torch.Tensor) -> torch.Tensor:
        return value.flatten(2)

    @staticmethod
    def symbolic(graph: Any, value: Any) -> Any:
        shape = graph.op("Constant", value_t=torch.tensor([0, 0, -1]))
        return graph.op("Reshape", value, shape)


class _RepeatForBatch(torch.autograd.Function):
    """A constant ``[1, rows, hidden]``, repeated along the batch axis of another tensor."""

    @staticmethod
    def forward(_context: Any, constant: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return constant.expand(like.shape[0], -1, -1)

    @staticmethod
    def symbolic(graph: Any, constant: Any, like: Any) -> Any:
        # torch's own export of expand() brings Where and ConstantOfShape, which chips cannot lower.
        batch = graph.op("Shape", like, start_i=0, end_i=1)
        ones = graph.op("Constant", value_t=torch.tensor([1, 1]))
        return graph.op("Expand", constant, graph.op("Concat", batch, ones, axis_i=0))


class _FirstToken(torch.autograd.Function):
    """``[batch, tokens, hidden]`` -> ``[batch, hidden]``: the first token."""

    @staticmethod
    def forward(_context: Any, value: torch.Tensor) -> torch.Tensor:
        return value[:, 0]

    @staticmethod
    def symbolic(graph: Any, value: Any) -> Any:
        # Slice and Flatten, not Gather: chips take a Gather for an embedding lookup.
        bounds = (graph.op("Constant", value_t=torch.tensor([n])) for n in (0, 1, 1))
        return graph.op("Flatten", graph.op("Slice", value, *bounds), axis_i=1)


def split_heads(value: torch.Tensor, head_size: int) -> torch.Tensor:
    """``[batch, tokens, hidden]`` -> ``[batch, tokens, heads, head_size]``."""
    return _SplitHeads.apply(value, head_size)  # type: ignore[no-any-return, no-untyped-call]


def flatten_last(value: torch.Tensor) -> torch.Tensor:
    """``[a, b, c, d]`` -> ``[a, b, c * d]``."""
    return _FlattenLast.apply(value)  # type: ignore[no-any-return, no-untyped-call]


def first_token(value: torch.Tensor) -> torch.Tensor:
    """``[batch, tokens, hidden]`` -> ``[batch, hidden]``."""
    return _FirstToken.apply(value)  # type: ignore[no-any-return, no-untyped-call]


def repeat_for_batch(constant: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``[1, rows, hidden]`` -> ``[batch, rows, hidden]`` with the batch size of ``like``."""
    return _RepeatForBatch.apply(constant, like)  # type: ignore[no-any-return, no-untyped-call]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention over ``[batch, tokens, heads, head_size]`` tensors.

    ``mask`` is additive and broadcasts to ``[batch, heads, query_tokens, key_tokens]``. Returns
    ``[batch, query_tokens, hidden]``.
    """
    head_size = query.shape[-1]
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) * float(head_size) ** -0.5
    if mask is not None:
        scores = scores + mask
    context = torch.matmul(torch.softmax(scores, dim=-1), value)
    return flatten_last(context.transpose(1, 2))


def padding_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Ones (real) and zeros ``[batch, tokens]`` -> additive mask ``[batch, 1, 1, tokens]``."""
    return (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * MASKED


class Projection(nn.Module):
    """A linear layer whose weight lies as ``[inputs, outputs]``, a view of the checkpoint's.

    Exported as MatMul and Add with no Transpose between weight and product.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().t(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def of(cls, linear: nn.Linear) -> Projection:
        """The same computation as ``linear``, sharing its memory."""
        return cls(linear.weight, linear.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, tokens, inputs]`` -> ``[batch, tokens, outputs]``."""
        product = torch.matmul(hidden, self.weight)
        return product if self.bias is None else product + self.bias


class FeedForward(nn.Module):
    """Two projections with the checkpoint's activation between them."""

    def __init__(self, inner: nn.Linear, activation: nn.Module, outer: nn.Linear) -> None:
        super().__init__()
        self.inner = Projection.of(inner)
        self.activation = activation
        self.outer = Projection.of(outer)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, tokens, hidden]`` -> same shape."""
        activated: torch.Tensor = self.outer(self.activation(self.inner(hidden)))
        return activated
