"""What every measured variant offers: open once, run a workload, say what it holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.schedule import Workload


@dataclass(frozen=True)
class RunnerOptions:
    """What a worker needs to open a variant; JSON-serialisable but for the paths."""

    variant: str
    task: str
    threads: int
    #: folder of the pipeline's artifacts
    artifacts: Path
    #: local folder or hub id of the checkpoint
    checkpoint: str
    revision: str | None
    #: the same inputs for every variant (``inputs.npz``)
    inputs: Path
    #: the bench's own folder, e.g. for compiled-model caches
    work: Path


@dataclass
class Measured:
    """One call: wall seconds, seconds per stage, each step, and what came out."""

    seconds: float
    stages: dict[str, float] = field(default_factory=dict)
    #: seconds of each decoder step after the first pass, in order
    steps: list[float] = field(default_factory=list)
    #: token ids ``[rows, tokens]``, prompt included; empty where the task has none
    tokens: list[list[int]] = field(default_factory=list)
    #: operations or bytes per second (machine limits only)
    rate: float | None = None


class Runner(ABC):
    """One variant."""

    def __init__(self, options: RunnerOptions) -> None:
        self.options = options

    @abstractmethod
    def open(self) -> None:
        """Loads everything; raises with a one-line reason if it cannot run here."""

    @abstractmethod
    def run(self, workload: Workload) -> Measured:
        """One call."""

    def facts(self) -> dict[str, Any]:
        """What is worth recording about the opened variant, e.g. its arithmetic."""
        return {}

    def close(self) -> None:  # noqa: B027 - most have nothing to release
        """Releases what ``open`` took."""
