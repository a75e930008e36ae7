"""benchmark.json: what was measured, where, and what follows from it (docs/benchmark.md)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from benchmarks.machine import Machine
from benchmarks.summary import Summary

SCHEMA_VERSION = 2
RESULT_FILE = "benchmark.json"


class Strict(BaseModel):
    """Base of the file's parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WorkloadResult(Strict):
    """One variant on one workload; times in ms per call, not per row."""

    batch: int
    beams: int
    total_ms: Summary
    #: one per round
    samples_ms: tuple[float, ...]
    #: medians of the stages: vision, text_encoder, cross_key_values, first_pass
    stages_ms: dict[str, float]
    #: of one decoder step after the first pass, all rows of the batch together
    step_ms: float | None = None


class VariantResult(Strict):
    """One row of the table."""

    #: one line when the variant could not run here; then nothing else is known
    not_measured: str | None = None
    disk_bytes: int | None = None
    #: of the process at batch 1, libraries included
    peak_bytes: int | None = None
    workloads: dict[str, WorkloadResult] = {}
    #: rows whose generated tokens are those of torch in float32, of rows compared
    tokens_equal: tuple[int, int] | None = None


class CommandLineResult(Strict):
    """A mode as users meet it: fresh processes of the command line with a warm model cache."""

    #: from the start of the process to its first caption
    first_caption_s: Summary
    #: of a folder, the start of the process included
    images_per_s: Summary
    images: int
    #: of the process that captions the folder
    peak_bytes: int


class TaskResult(Strict):
    """Everything about one task."""

    variants: dict[str, VariantResult]
    #: ``<workload>/<variant>/<baseline>``: time of the baseline over time of the variant, per round
    ratios: dict[str, Summary]
    #: by mode; captions only
    command_line: dict[str, CommandLineResult] = {}


class Benchmark(Strict):
    """The whole file."""

    schema_version: int = SCHEMA_VERSION
    pipeline: str
    machine: Machine
    tools: dict[str, str]
    threads: int
    new_tokens: int
    rounds: int
    quick: bool
    #: artifacts measured: ``task/target/precision/component`` -> key of its manifest
    artifacts: dict[str, str]
    tasks: dict[str, TaskResult]
