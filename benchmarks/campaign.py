"""Takes the samples, round-robin: all variants stay loaded, one works, the others idle."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.samples import Sample, SampleStore, complete_rounds
from benchmarks.schedule import FEWEST_ROUNDS, LIMITS, Block, Workload, order
from benchmarks.worker_process import WorkerError

#: A sample lasts at least this long: short calls are repeated, so that clocks and ticks matter
#: little.
LEAST_SAMPLE_S = 0.25
#: Compile nothing per shape: once warm, they need no warm-up for another one.
SHAPELESS = ("torch_f32", "torch_bf16", "onnxruntime")
#: How often a disturbed sample is taken again.
RETAKES = 2


class Measures(Protocol):
    """What a campaign needs of a worker."""

    def measure(self, workload: Workload, least_s: float) -> dict[str, Any]:
        """One sample."""
        ...

    def memory(self) -> dict[str, int]:
        """Resident and peak bytes."""
        ...


@dataclass
class Campaign:
    """Samples so far, and why variants dropped out."""

    store: SampleStore
    #: variant -> one-line reason
    failures: dict[str, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    #: variant -> seconds of its first call (compilation of shapes included)
    first_call_s: dict[str, float] = field(default_factory=dict)
    #: variant -> resident and peak bytes after the first block
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    #: (variant, workload) -> token ids of the last sample
    tokens: dict[tuple[str, str], list[list[int]]] = field(default_factory=dict)
    #: told what happens now, and the seconds the block still takes
    report: Callable[[str, float], None] = lambda _, __: None

    def run(self, blocks: list[Block], workers: Mapping[str, Measures]) -> None:
        """Runs every block; rounds that the store has already are not repeated."""
        before = self.store.read()
        for index, block in enumerate(blocks):
            kept = complete_rounds(before, _pairs(block), block.name)
            self.samples += kept
            later = sum(other.budget_s for other in blocks[index + 1 :])
            self._block(block, workers, 1 + max((s.turn for s in kept), default=-1), later)
            if index == 0:
                self._remember_memory(workers)
        self.store.replace(self.samples)

    def _block(
        self, block: Block, workers: Mapping[str, Measures], first: int, later_s: float
    ) -> None:
        costs = self._warm_up(block, workers, later_s + block.budget_s)
        per_round = sum(costs.values())
        affordable = int(block.budget_s / per_round) if per_round > 0 else block.rounds
        rounds = min(block.rounds, max(FEWEST_ROUNDS, affordable))
        begin, done_s = time.monotonic(), 0.0
        total_s = per_round * max(0, rounds - first)
        for turn, variant, workload in order(block, rounds, first):
            if variant in self.failures or variant not in workers:
                continue
            elapsed = time.monotonic() - begin
            pace = max(1.0, elapsed / done_s) if done_s > 5 else 1.0
            left = (total_s - done_s) * pace + later_s
            self.report(f"{block.name} {turn + 1}/{rounds}: {variant} {workload.name}", left)
            self._take(block, turn, variant, workload, workers[variant])
            done_s += costs.get((variant, workload.name), 0.0)

    def _warm_up(
        self, block: Block, workers: Mapping[str, Measures], left_s: float
    ) -> dict[tuple[str, str], float]:
        """First calls of every shape, thrown away; returns the seconds that one of each takes."""
        costs: dict[tuple[str, str], float] = {}
        for variant, workloads in block.workloads:
            for workload in workloads:
                if variant in self.failures or variant not in workers:
                    continue
                if variant in SHAPELESS and variant in self.first_call_s:
                    # Rows cost about the same each; this only plans the block's time.
                    costs[variant, workload.name] = (
                        self._greedy_s(variant) * workload.batch * max(1.0, 0.6 * workload.beams)
                    )
                    continue
                self.report(f"{block.name}, warming up: {variant} {workload.name}", left_s)
                try:
                    first = workers[variant].measure(workload, 0.0)
                    again = first
                    # The first call of a shape compiles and says nothing about the next one.
                    if first["seconds"] < 3.0 or variant == "torch_compile":
                        again = workers[variant].measure(workload, 0.0)
                except WorkerError as error:
                    self.failures[variant] = str(error)
                    continue
                self.first_call_s.setdefault(variant, first["seconds"])
                costs[variant, workload.name] = max(again["seconds"], LEAST_SAMPLE_S)
        return costs

    def _take(
        self, block: Block, turn: int, variant: str, workload: Workload, worker: Measures
    ) -> None:
        retakes = 0 if self._hopeless(block) else RETAKES
        for attempt in range(retakes + 1):
            try:
                raw = worker.measure(workload, LEAST_SAMPLE_S)
            except WorkerError as error:
                self.failures[variant] = str(error)
                return
            sample = Sample(
                block=block.name,
                turn=turn,
                variant=variant,
                workload=workload.name,
                total_ms=raw["total_ms"],
                stages_ms=raw["stages_ms"],
                steps_ms=tuple(raw["steps_ms"]),
                rate=raw["rate"],
                calls=raw["calls"],
                others=raw["others"],
                retaken=attempt,
            )
            if sample.clean:
                break
        self.tokens[variant, workload.name] = raw["tokens"]
        self.samples.append(sample)
        self.store.add(sample)

    def _hopeless(self, block: Block) -> bool:
        """Whether the machine is simply busy: taking samples again then only takes longer."""
        mine = [sample for sample in self.samples if sample.block == block.name]
        return len(mine) >= 6 and sum(not s.clean for s in mine) > len(mine) / 2

    def _greedy_s(self, variant: str) -> float:
        mine = [s.total_ms for s in self.samples if (s.variant, s.workload) == (variant, "greedy")]
        return max(LEAST_SAMPLE_S, statistics.median(mine) / 1000 if mine else 0.0)

    def _remember_memory(self, workers: Mapping[str, Measures]) -> None:
        for variant, worker in workers.items():
            if variant == LIMITS or variant in self.failures:
                continue
            try:
                self.memory[variant] = worker.memory()
            except WorkerError as error:
                self.failures[variant] = str(error)


def _pairs(block: Block) -> list[tuple[str, str]]:
    return [(variant, work.name) for variant, works in block.workloads for work in works]
