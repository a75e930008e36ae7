"""The training loop: one shared vision encoder, the given tasks together, resumable."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoints.training.architecture import Task
from models.checkpoints.training.data import Batch
from models.checkpoints.training.losses import joint_losses

LOSS_WEIGHTS: dict[str, float] = {"caption": 1.0, "vqa": 1.0, "itm": 1.0, "itc": 0.3}
#: Learning rates of matrices and of the rest.
MATRIX_RATE, OTHER_RATE = 0.01, 1e-3
_WEIGHT_DECAY = 0.02
_SAY_EVERY = 50


@dataclass(frozen=True)
class Schedule:
    """Learning rates: warm-up, a plateau, and a linear descent over the last part."""

    steps: int
    #: factor on the rates
    rate: float = 1.0
    warmup: int = 100
    descent_share: float = 0.35

    def factor(self, step: int) -> float:
        """What the rates are multiplied with at a step."""
        descent = self.steps * self.descent_share
        return self.rate * min(1.0, (step + 1) / self.warmup, (self.steps - step) / descent)


class Trainer:
    """Trains the given tasks together and keeps its state in ``state_path``."""

    def __init__(
        self,
        models: dict[Task, Any],
        schedule: Schedule,
        tasks: tuple[Task, ...],
        state_path: Path,
    ) -> None:
        self._models, self._tasks = models, tasks
        self._schedule, self._state_path = schedule, state_path
        self._modules = nn.ModuleDict({task: models[task] for task in tasks})
        #: log of the contrast's scale
        self._scale = nn.Parameter(torch.tensor(2.6592))
        self._modules.register_parameter("scale", self._scale)
        self._optimizers = self._make_optimizers()
        self._step = 0

    def _make_optimizers(self) -> dict[float, torch.optim.Optimizer]:
        """By rate. Matrices inside layers get Muon; embeddings, norms, biases and heads AdamW."""
        matrices: list[Tensor] = []
        plain: list[Tensor] = []
        decayed: list[Tensor] = []
        for name, parameter in self._modules.named_parameters():
            if parameter.ndim == 2 and ".layer" in name and "embedding" not in name:
                matrices.append(parameter)
            else:
                (decayed if parameter.ndim >= 2 else plain).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": _WEIGHT_DECAY},
            {"params": plain, "weight_decay": 0.0},
        ]
        return {
            MATRIX_RATE: torch.optim.Muon(matrices, weight_decay=_WEIGHT_DECAY),
            OTHER_RATE: torch.optim.AdamW(groups, betas=(0.9, 0.98)),
        }

    def resume(self) -> int:
        """Loads the saved state if there is one; returns the step to go on from."""
        if self._state_path.exists():
            state = torch.load(self._state_path, weights_only=True)
            self._modules.load_state_dict(state["modules"])
            for optimizer, saved in zip(
                self._optimizers.values(), state["optimizers"], strict=True
            ):
                optimizer.load_state_dict(saved)
            self._step = state["step"]
        return self._step

    def run(
        self,
        make_batch: Callable[[int], Batch],
        every: int,
        pause: Callable[[int], None],
        say: Callable[[str], None],
    ) -> None:
        """Trains to the end of the schedule; saves and calls ``pause`` every so many steps."""
        totals: dict[str, float] = defaultdict(float)
        started = time.monotonic()
        while self._step < self._schedule.steps:
            for name, value in self._train_on(make_batch(self._step)).items():
                totals[name] += value / _SAY_EVERY
            self._step += 1
            if self._step % _SAY_EVERY == 0:
                seconds = (time.monotonic() - started) / _SAY_EVERY
                means = "  ".join(f"{name} {value:.4f}" for name, value in totals.items())
                say(f"step {self._step}  {means}  {seconds:.2f} s/step")
                totals.clear()
                started = time.monotonic()
            if self._step % every == 0 or self._step == self._schedule.steps:
                self._save()
                pause(self._step)

    def _save(self) -> None:
        self._state_path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._state_path.with_suffix(".new")
        optimizers = [optimizer.state_dict() for optimizer in self._optimizers.values()]
        modules = self._modules.state_dict()
        torch.save({"modules": modules, "optimizers": optimizers, "step": self._step}, fresh)
        fresh.replace(self._state_path)

    def _train_on(self, batch: Batch) -> dict[str, float]:
        """Takes one optimiser step; returns the losses by name."""
        factor = self._schedule.factor(self._step)
        self._modules.train()
        with torch.autocast("cpu", torch.bfloat16):
            losses = joint_losses(self._models, self._scale, batch, self._tasks)
        total = torch.stack([LOSS_WEIGHTS[name] * loss for name, loss in losses.items()]).sum()
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(self._modules.parameters(), 1.0)
        for rate, optimizer in self._optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            self._scale.clamp_(0.0, 4.6)
        return {name: float(loss.detach()) for name, loss in losses.items()}
