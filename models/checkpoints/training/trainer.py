"""The training loop: one shared vision encoder, three tasks, resumable."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from models.checkpoints.training.architecture import Task
from models.checkpoints.training.data import BatchMaker
from models.checkpoints.training.losses import joint_losses
from models.checkpoints.training.muon import BatchedMuon
from models.checkpoints.training.parallel import average_gradients, wait_for_all

LOSS_WEIGHTS: dict[str, float] = {"caption": 1.0, "vqa": 1.0, "itm": 1.0, "itc": 0.3}
MATRIX_RATE = 0.01
OTHER_RATE = 1e-3


@dataclass(frozen=True)
class Schedule:
    """Learning rates: warm-up, a plateau, and a linear descent over the last part."""

    steps: int
    matrix_rate: float = MATRIX_RATE
    other_rate: float = OTHER_RATE
    warmup: int = 100
    descent_share: float = 0.35

    def factor(self, step: int) -> float:
        """Return the share of the full rate at a step."""
        descent = self.steps * self.descent_share
        return max(0.0, min(1.0, (step + 1) / self.warmup, (self.steps - step) / descent))


class Trainer:
    """Trains the given tasks together and keeps its state in ``state_path``."""

    def __init__(
        self,
        models: dict[Task, Any],
        batches: BatchMaker,
        schedule: Schedule,
        tasks: tuple[Task, ...],
        state_path: Path,
        rank: int = 0,
    ) -> None:
        self._models = models
        self._batches = batches
        self._schedule = schedule
        self._tasks = tasks
        self._state_path = state_path
        self._rank = rank
        self._scale = nn.Parameter(torch.tensor(2.6592))
        self._modules = nn.ModuleDict({task: models[task] for task in tasks})
        self._optimizers = self._make_optimizers()
        self._step = 0

    def _make_optimizers(self) -> list[torch.optim.Optimizer]:
        """Matrices inside layers get Muon; embeddings, norms, biases and heads get AdamW."""
        matrices, plain, decayed = [], [self._scale], []
        for name, parameter in self._modules.named_parameters():
            if parameter.ndim == 2 and ".layer" in name and "embedding" not in name:
                matrices.append(parameter)
            elif parameter.ndim >= 2:
                decayed.append(parameter)
            else:
                plain.append(parameter)
        groups = [
            {"params": decayed, "weight_decay": 0.02},
            {"params": plain, "weight_decay": 0.0},
        ]
        muon = BatchedMuon(matrices, self._schedule.matrix_rate)
        adam = torch.optim.AdamW(groups, lr=self._schedule.other_rate, betas=(0.9, 0.98))
        return [muon, adam]

    def resume(self) -> int:
        """Load the saved state if there is one; returns the step to go on from."""
        if self._state_path.exists():
            state = torch.load(self._state_path, weights_only=True)
            self._modules.load_state_dict(state["models"])
            with torch.no_grad():
                self._scale.copy_(state["scale"])
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self._step = int(state["step"])
        return self._step

    def save_state(self) -> None:
        """Write the state, replacing the former one at once."""
        self._state_path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._state_path.with_suffix(".new")
        state = {
            "models": self._modules.state_dict(),
            "scale": self._scale.detach(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "step": self._step,
        }
        torch.save(state, fresh)
        fresh.replace(self._state_path)

    def run(self, every: int, pause: Callable[[int], None], console: Console) -> None:
        """Train to the end of the schedule.

        Every ``every`` steps the first process saves the state and calls ``pause``.
        """
        columns = (*Progress.get_default_columns()[:3], TimeElapsedColumn(), TimeRemainingColumn())
        shown = self._rank == 0
        with (
            Progress(*columns, console=console, disable=not shown) as progress,
            ThreadPoolExecutor(1) as executor,
        ):
            bar = progress.add_task("training", total=self._schedule.steps, completed=self._step)
            upcoming = executor.submit(self._batches.make, self._step)
            totals: dict[str, float] = defaultdict(float)
            started = time.monotonic()
            while self._step < self._schedule.steps:
                batch = upcoming.result()
                upcoming = executor.submit(self._batches.make, self._step + 1)
                for name, value in self._train_on(batch).items():
                    totals[name] += value
                self._step += 1
                progress.update(bar, completed=self._step)
                if self._step % 50 == 0 and shown:
                    seconds = (time.monotonic() - started) / 50
                    means = "  ".join(f"{name} {value / 50:.4f}" for name, value in totals.items())
                    console.print(f"step {self._step}  {means}  {seconds:.2f} s/step")
                    totals.clear()
                    started = time.monotonic()
                if self._step % every == 0 or self._step == self._schedule.steps:
                    if shown:
                        self.save_state()
                        pause(self._step)
                    wait_for_all()

    def _train_on(self, batch: Any) -> dict[str, float]:
        """Take one optimiser step; returns the losses by name."""
        factor = self._schedule.factor(self._step)
        rates = (self._schedule.matrix_rate, self._schedule.other_rate)
        for optimizer, rate in zip(self._optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        self._modules.train()
        with torch.autocast("cpu", torch.bfloat16):
            losses = joint_losses(self._models, self._scale, batch, self._tasks)
        total = torch.stack([LOSS_WEIGHTS[name] * loss for name, loss in losses.items()]).sum()
        torch.autograd.backward(total)
        parameters: list[Tensor] = [*self._modules.parameters(), self._scale]
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            self._scale.clamp_(0.0, 4.6)
        return {name: float(loss.detach()) for name, loss in losses.items()}
