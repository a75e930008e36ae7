"""What must be reached, as ratios, and whether it is."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.results import Acceptance, TaskResult
from benchmarks.summaries import Summary, summarise

_MIB = 1 << 20
#: Steady memory allowed: this many times the artifacts' files, plus this many bytes.
MEMORY_FACTOR, MEMORY_EXTRA_BYTES = 1.25, 200_000_000


@dataclass(frozen=True)
class Line:
    """One requirement: where its figure stands in a task's result."""

    name: str
    table: str
    key: str
    relation: str
    threshold: float
    unit: str = "x"


LINES = (
    Line("fast, over torch float32 eager", "ratios", "greedy/fast/torch_f32", ">=", 4.8),
    Line("fast, over the notebook's design", "ratios", "greedy/fast/notebook", ">=", 2.4),
    Line("fast, share of the machine's floor", "floor_share", "fast", ">=", 0.80, ""),
    Line("exact, over torch float32 eager", "ratios", "greedy/exact/torch_f32", ">=", 3.0),
    Line("int8, over torch float32 eager", "ratios", "greedy/int8/torch_f32", ">=", 6.5),
    Line("int8, over the notebook's design", "ratios", "greedy/int8/notebook", ">=", 3.3),
    Line("int8, share of the machine's floor", "floor_share", "int8", ">=", 0.65, ""),
    Line("fast, images/s of batch 16 over batch 1", "shapes", "fast/batch_16", ">=", 1.25),
    Line("exact, images/s of batch 16 over batch 1", "shapes", "exact/batch_16", ">=", 1.25),
    Line("int8, images/s of batch 16 over batch 1", "shapes", "int8/batch_16", ">=", 1.25),
    Line("fast, three beams over greedy", "shapes", "fast/beams_3", "<=", 1.15),
    Line("exact, three beams over greedy", "shapes", "exact/beams_3", "<=", 1.15),
    Line("int8, three beams over greedy", "shapes", "int8/beams_3", "<=", 1.15),
    Line("fast, a token after 64 past over after 8", "shapes", "fast/token_growth", "<=", 1.10),
    Line("int8, a token after 64 past over after 8", "shapes", "int8/token_growth", "<=", 1.10),
    Line("fast, process start to first caption", "starts", "fast", "<=", 1.2, "s"),
    Line("int8, process start to first caption", "starts", "int8", "<=", 1.2, "s"),
    Line("fast, folder over pure inference", "folders", "fast", ">=", 0.95, ""),
    Line("int8, folder over pure inference", "folders", "int8", ">=", 0.95, ""),
    Line("fast, steady memory over 1.25 x IR + 200 MB", "memory", "fast", "<=", 1.0, ""),
    Line("int8, steady memory over 1.25 x IR + 200 MB", "memory", "int8", "<=", 1.0, ""),
)


def judge(result: TaskResult) -> tuple[Acceptance, ...]:
    """Every line with its figure; ``met`` looks at the median, the interval stands beside it."""
    judged = []
    for line in LINES:
        measured = _figure(result, line)
        met = None
        if measured is not None:
            value = measured.median
            met = value >= line.threshold if line.relation == ">=" else value <= line.threshold
        judged.append(
            Acceptance(
                name=line.name,
                relation=line.relation,
                threshold=line.threshold,
                measured=measured,
                met=met,
                unit=line.unit,
            )
        )
    return tuple(judged)


def _figure(result: TaskResult, line: Line) -> Summary | None:
    if line.table == "starts":
        start = result.starts.get(line.key)
        return None if start is None else start.first_caption_s
    if line.table == "folders":
        folder = result.folders.get(line.key)
        return None if folder is None else folder.share
    if line.table == "memory":
        variant = result.variants.get(line.key)
        if variant is None or not variant.resident_bytes or not variant.disk_bytes:
            return None
        allowed = MEMORY_FACTOR * variant.disk_bytes + MEMORY_EXTRA_BYTES
        return summarise([variant.resident_bytes / allowed])
    table: dict[str, Summary] = getattr(result, line.table)
    return table.get(line.key)
