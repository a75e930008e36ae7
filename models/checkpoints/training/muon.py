"""Muon for many small matrices: matrices of one shape are orthogonalised in one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.training.parallel import share_work

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class BatchedMuon(torch.optim.Optimizer):
    """Momentum whose update is made nearly orthogonal by a Newton-Schulz iteration.

    The arithmetic is that of ``torch.optim.Muon``. One group holds all matrices ``[R, C]`` of one
    shape; their momentum is one tensor ``[N, R, C]``, kept in the state of the group's first.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        lr: float = 0.01,
        momentum: float = 0.95,
        weight_decay: float = 0.02,
    ) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            by_shape[matrix.shape].append(matrix)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([{"params": params} for params in by_shape.values()], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update every matrix from its gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            params: list[Tensor] = group["params"]
            gradients = torch.stack([p.grad for p in params if p.grad is not None])
            state = self.state[params[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradients)
            buffer: Tensor = state["momentum"]
            buffer.lerp_(gradients, 1 - group["momentum"])
            update = share_work(orthogonalised, gradients.lerp_(buffer, group["momentum"]))
            rows, columns = params[0].shape
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, list(update.unbind()), alpha=-rate)
        return loss


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return float ``[N, R, C]`` with every singular value pushed close to one."""
    linear, cubic, quintic = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    work = (matrices.mT if tall else matrices).to(torch.bfloat16)
    work = work / work.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = work @ work.mT
        gram = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        work = torch.baddbmm(work, gram, work, beta=linear)
    return (work.mT if tall else work).to(matrices.dtype)
