"""benchmark.json: what was measured, where, and what follows from it (docs/performance.md)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from benchmarks.machine import Machine
from benchmarks.samples import Sample
from benchmarks.summaries import Summary

SCHEMA_VERSION = 1
RESULT_FILE = "benchmark.json"


class Strict(BaseModel):
    """Base of the file's parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WorkloadResult(Strict):
    """One variant on one workload; times in ms per call, not per row."""

    batch: int
    beams: int
    total_ms: Summary
    #: medians of the stages: vision, text_encoder, cross_key_values, first_pass
    stages_ms: dict[str, float]
    #: of one decoder step after the first pass, all rows of the batch together
    step_ms: Summary | None = None
    images_per_s: float
    #: samples that other processes disturbed; they are left out where enough others remain
    disturbed: int


class VariantResult(Strict):
    """One row of the table."""

    #: one line when the variant could not run here; then nothing else is known
    not_measured: str | None = None
    disk_bytes: int | None = None
    #: of the process after the batch-1 rounds
    resident_bytes: int | None = None
    peak_bytes: int | None = None
    #: first call of the process, shapes compiled
    first_call_s: float | None = None
    workloads: dict[str, WorkloadResult] = {}
    #: rows whose generated tokens are those of torch in float32, of rows compared
    tokens_equal: tuple[int, int] | None = None


class Start(Strict):
    """A mode as a user meets it: a fresh process of the command line with a warm model cache."""

    first_caption_s: Summary
    #: of that process
    peak_bytes: int


class Folder(Strict):
    """A folder of images through the command line, against inference alone."""

    images: int
    images_per_s: float
    #: the largest batch through the same artifacts, images preprocessed beforehand
    inference_images_per_s: float
    share: Summary


class Endurance(Strict):
    """Thousands of images through one process."""

    images: int
    #: median ms per image in the second tenth of the run, and in the last
    early_ms: float
    late_ms: float
    #: how much dearer the last are, as a share
    cost_growth: float
    #: after the first tenth
    resident_bytes: int
    #: growth from there to the end, as a share
    resident_growth: float


class Acceptance(Strict):
    """One line of what must be reached."""

    name: str
    #: ``>=`` or ``<=``
    relation: str
    threshold: float
    measured: Summary | None
    #: None: nothing was measured for it
    met: bool | None
    unit: str = "x"


class TaskResult(Strict):
    """Everything about one task."""

    variants: dict[str, VariantResult]
    #: ``<workload>/<variant>/<baseline>``: time of the baseline over time of the variant, per round
    ratios: dict[str, Summary]
    #: ``<mode>/batch_16``: images per second over those of batch 1; ``<mode>/beams_3``: time over
    #: greedy's; ``<mode>/token_growth``: cost of a token after 64 past tokens over that after 8
    shapes: dict[str, Summary]
    #: operations per second by type, and ``read_bandwidth`` in bytes per second
    limits: dict[str, Summary]
    #: least ms per caption, by mode
    floor_ms: dict[str, Summary]
    #: floor over measured time, by mode
    floor_share: dict[str, Summary]
    starts: dict[str, Start] = {}
    folders: dict[str, Folder] = {}
    endurance: dict[str, Endurance] = {}
    acceptance: tuple[Acceptance, ...] = ()
    samples: tuple[Sample, ...] = ()


class Benchmark(Strict):
    """The whole file."""

    schema_version: int = SCHEMA_VERSION
    pipeline: str
    machine: Machine
    tools: dict[str, str]
    threads: int
    new_tokens: int
    prompt_tokens: int
    quick: bool
    #: artifacts measured: ``task/target/precision/component`` -> key of its manifest
    artifacts: dict[str, str]
    tasks: dict[str, TaskResult]
