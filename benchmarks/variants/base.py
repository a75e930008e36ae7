"""What every variant offers: it is opened once, then answers workloads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from configs.schema import Task

BASELINES = ("torch_f32", "torch_bf16", "onnxruntime", "notebook")
#: Our OpenVINO artifacts: mode -> precision set and arithmetic.
MODES = {
    "exact": ("f16", "exact"),
    "fast": ("f16", "fast"),
    "int8": ("int8", "fast"),
    "int4": ("int4", "fast"),
}
VARIANTS = (*BASELINES, *MODES)
#: New tokens of every generation, forced: random weights would end early, each variant elsewhere.
NEW_TOKENS = 16


@dataclass(frozen=True)
class Workload:
    """What one call does."""

    name: str
    batch: int = 1
    beams: int = 1


GREEDY = Workload("greedy")
BEAMS = Workload("beams_3", beams=3)
BATCH = Workload("batch_4", batch=4)


@dataclass(frozen=True)
class Inputs:
    """The same for every variant: ``pixel_values`` ``[rows, 3, height, width]`` float32 and
    ``input_ids`` ``[rows, tokens]`` int64.

    Ids are as HuggingFace's processor makes them: [CLS] first, [SEP] last, one length for all rows.
    """

    pixel_values: np.ndarray
    input_ids: np.ndarray


@dataclass(frozen=True)
class VariantOptions:
    """What a variant needs to open itself."""

    variant: str
    task: Task
    threads: int
    #: folder of the task's artifacts
    artifacts: Path
    #: local folder or hub id of the checkpoint
    checkpoint: str
    revision: str | None
    inputs: Inputs
    #: folder of what variants keep between runs, e.g. compiled models
    work: Path


@dataclass
class Call:
    """One call: wall seconds, seconds per stage, seconds of a decoder step, and what came out."""

    seconds: float
    stages: dict[str, float] = field(default_factory=dict)
    #: mean over the steps after the first pass
    step: float | None = None
    #: token ids ``[rows, tokens]``, prompt included; empty where the task has none
    tokens: list[list[int]] = field(default_factory=list)


class Variant(ABC):
    """One way of running a checkpoint; the constructor loads everything."""

    #: bytes of the files it runs, where they are artifacts
    disk_bytes: int | None = None

    @abstractmethod
    def run(self, workload: Workload) -> Call:
        """One call."""
