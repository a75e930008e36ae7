"""Samples -> medians, ratios within rounds, shares of the floor."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.floor import MODE_TYPES, Work
from benchmarks.results import WorkloadResult
from benchmarks.samples import Sample, usable
from benchmarks.schedule import (
    BATCH_4,
    BATCH_16,
    BEAMS,
    GREEDY,
    LIMITS,
    LONG,
    MODES,
    PAST_FROM,
    PAST_TO,
    PROMPT_TOKENS,
    Workload,
)
from benchmarks.summaries import Summary, paired_ratios, summarise

WORKLOADS = {work.name: work for work in (GREEDY, BEAMS, BATCH_4, BATCH_16, LONG)}
#: Blocks in the order in which a workload's own figures are looked for: greedy is part of several.
_BLOCKS = ("answer", "beams", "batch_4", "batch_16", "long")
#: Steps on either side of a past length that stand for it.
_WINDOW = 4


class Samples:
    """The samples of one task, by block, variant and workload."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = list(samples)

    def of(self, block: str, variant: str, workload: str) -> list[Sample]:
        """All samples of one cell."""
        return [
            s
            for s in self._samples
            if (s.block, s.variant, s.workload) == (block, variant, workload)
        ]

    def home(self, variant: str, workload: str) -> tuple[str, list[Sample]]:
        """The first block that has the workload for this variant, and its samples there."""
        for block in _BLOCKS:
            if found := self.of(block, variant, workload):
                return block, found
        return "", []

    def ratio(self, block: str, above: tuple[str, str], below: tuple[str, str]) -> Summary | None:
        """Per-round time of ``above`` (variant, workload) over ``below``; clean rounds if
        enough."""
        pairs = [self.of(block, *above), self.of(block, *below)]
        clean = [{s.turn: s.total_ms for s in cell if s.clean} for cell in pairs]
        every = [{s.turn: s.total_ms for s in cell} for cell in pairs]
        found = paired_ratios(*clean)
        whole = paired_ratios(*every)
        if len(found) < min(3, len(whole)):
            found = whole
        return summarise(list(found.values())) if found else None


def workload_result(samples: Sequence[Sample], workload: Workload) -> WorkloadResult:
    """Medians of one variant on one workload."""
    kept = usable(samples)
    stages = {
        stage: statistics.median(s.stages_ms[stage] for s in kept)
        for stage in kept[0].stages_ms
        if all(stage in s.stages_ms for s in kept)
    }
    steps = [statistics.median(s.steps_ms) for s in kept if s.steps_ms]
    total = summarise([s.total_ms for s in kept])
    return WorkloadResult(
        batch=workload.batch,
        beams=workload.beams,
        total_ms=total,
        stages_ms=stages,
        step_ms=summarise(steps) if steps else None,
        images_per_s=1000.0 * workload.batch / total.median,
        disturbed=sum(not s.clean for s in samples),
    )


def ratios(samples: Samples, variants: Sequence[str]) -> dict[str, Summary]:
    """Speed-ups over torch in float32 and over the notebook's design, side by side."""
    found: dict[str, Summary] = {}
    for baseline in ("torch_f32", "notebook"):
        for variant in variants:
            for workload in WORKLOADS:
                block, _ = samples.home(variant, workload)
                ratio = samples.ratio(block, (baseline, workload), (variant, workload))
                if ratio is not None and variant != baseline:
                    found[f"{workload}/{variant}/{baseline}"] = ratio
    return found


def shapes(samples: Samples, variants: Sequence[str]) -> dict[str, Summary]:
    """What batches, beams and long pasts cost, each against its own greedy call of the round."""
    found: dict[str, Summary] = {}
    for variant in variants:
        # Time of 16 rows over time of one: images per second are 16 over that.
        slower = samples.ratio("batch_16", (variant, GREEDY.name), (variant, BATCH_16.name))
        if slower is not None:
            found[f"{variant}/batch_16"] = _scaled(slower, BATCH_16.batch)
        beams = samples.ratio("beams", (variant, BEAMS.name), (variant, GREEDY.name))
        if beams is not None:
            found[f"{variant}/beams_3"] = beams
        growth = [
            g for s in usable(samples.of("long", variant, LONG.name)) if (g := token_growth(s))
        ]
        if growth:
            found[f"{variant}/token_growth"] = summarise(growth)
    return found


def token_growth(sample: Sample) -> float | None:
    """Median cost of the steps around 64 past tokens over that around 8, within one generation.

    Step i runs over the prompt and i generated tokens of the past.
    """
    early, late = PAST_FROM - PROMPT_TOKENS, PAST_TO - PROMPT_TOKENS
    steps = sample.steps_ms
    if len(steps) < late + 1:
        return None
    before = statistics.median(steps[early : early + 2 * _WINDOW])
    after = statistics.median(steps[late - 2 * _WINDOW + 1 : late + 1])
    return after / before


def limits(samples: Samples) -> dict[str, Summary]:
    """Rates of the machine."""
    found = {}
    for name in ("gemm_f32", "gemm_bf16", "gemm_int8", "read_bandwidth"):
        rates = [s.rate for s in usable(samples.of("answer", LIMITS, name)) if s.rate]
        if rates:
            found[name] = summarise(rates)
    return found


def floors(samples: Samples, work: Work, types: Mapping[str, str]) -> dict[str, dict[int, float]]:
    """Least ms per caption, by mode and round, from the rates of that very round.

    Args:
        samples: with the machine's limits.
        work: what a caption costs.
        types: mode -> type its matrix products are computed in, where not the usual one.
    """
    rates: dict[int, dict[str, float]] = {}
    for name in ("gemm_f32", "gemm_bf16", "gemm_int8", "read_bandwidth"):
        for sample in samples.of("answer", LIMITS, name):
            if sample.rate:
                rates.setdefault(sample.turn, {})[name.removeprefix("gemm_")] = sample.rate
    found: dict[str, dict[int, float]] = {}
    for mode in MODES:
        kind = types.get(mode, MODE_TYPES[mode][0])
        for turn, known in rates.items():
            if kind in known and "read_bandwidth" in known:
                given = {**known, MODE_TYPES[mode][0]: known[kind]}
                seconds = work.floor_s(mode, given, known["read_bandwidth"])
                found.setdefault(mode, {})[turn] = 1000.0 * seconds
    return found


def floor_shares(samples: Samples, floor: Mapping[str, Mapping[int, float]]) -> dict[str, Summary]:
    """Floor over measured time, by mode, within each round."""
    found = {}
    for mode, by_turn in floor.items():
        measured = {s.turn: s.total_ms for s in usable(samples.of("answer", mode, GREEDY.name))}
        shares = paired_ratios(by_turn, measured)
        if shares:
            found[mode] = summarise(list(shares.values()))
    return found


def _scaled(summary: Summary, factor: float) -> Summary:
    scaled = {
        name: getattr(summary, name) * factor
        for name in ("median", "q1", "q3", "mad", "low", "high")
    }
    return summary.model_copy(update=scaled)
