"""The benchmark's statistics, order, file format and table, on synthetic samples."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from benchmarks.__main__ import chosen_variants
from benchmarks.machine import describe
from benchmarks.results import Benchmark, TaskResult, VariantResult
from benchmarks.rounds import Measured, measure, rotated
from benchmarks.run import ratios, variant_result, workloads_of
from benchmarks.summary import ratio, summarise
from benchmarks.table import markdown
from benchmarks.variants.base import BATCH, GREEDY, Inputs, VariantOptions, Workload
from benchmarks.workers import Sample, VariantError, Worker
from configs.errors import ConfigError
from verify.page.benchmark import benchmarks
from verify.page.sources import VERSIONS


def sample(ms: float, tokens: int = 5) -> Sample:
    return Sample(ms, {"vision": ms / 2}, ms / 100, [[tokens]], 1 << 28)


def test_an_interval_covers_the_median_as_often_as_it_says() -> None:
    source = random.Random(3)
    for count in (3, 5, 7, 11):
        covered, said = 0, 0.0
        for _ in range(4000):
            # Skewed, as times are; the true median is 2 ** 0.5.
            found = summarise([source.paretovariate(2.0) for _ in range(count)])
            covered += found.low <= 2**0.5 <= found.high
            said = found.confidence
        assert covered / 4000 == pytest.approx(said, abs=0.02)


@pytest.mark.parametrize(
    ("count", "low", "high"), [(1, 0, 0), (5, 0, 4), (6, 0, 5), (9, 1, 7), (20, 5, 14)]
)
def test_an_interval_takes_the_order_statistics_of_the_tables(
    count: int, low: int, high: int
) -> None:
    # Conover, Practical Nonparametric Statistics, confidence interval of a quantile.
    found = summarise([float(i) for i in range(count)])
    assert (found.low, found.high) == (low, high)
    assert found.confidence >= 0.95 or count < 6


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_summaries_refuse_what_says_nothing(values: list[float]) -> None:
    with pytest.raises(ValueError, match="sample"):
        summarise(values)


def test_ratios_are_taken_within_rounds() -> None:
    # The machine slows down threefold in the middle; the ratio of each round is 2 all the same.
    drift = [1.0, 1.0, 3.0, 3.0, 3.0]
    found = ratio([20.0 * factor for factor in drift], [10.0 * factor for factor in drift])
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)


class Stub(Worker):
    """A loaded variant that takes a millisecond, and fails at one of its calls."""

    def __init__(self, name: str, log: list[str], fails_at: int = 0) -> None:
        self.name, self.log, self.fails_at, self.calls = name, log, fails_at, 0

    def measure(self, workload: Workload, least_s: float) -> Sample:
        self.calls += 1
        if self.calls == self.fails_at:
            raise VariantError("out of memory")
        if least_s:
            self.log.append(f"{self.name} {workload.name}")
        return sample(1.0)


def test_every_round_has_every_variant_and_begins_with_another() -> None:
    log: list[str] = []
    workers: dict[str, Worker] = {name: Stub(name, log) for name in ("a", "b", "c")}
    found = measure(workers, (GREEDY, BATCH), 3, lambda _: None)
    rounds = [log[start : start + 6] for start in (0, 6, 12)]
    assert rounds[0][:4] == ["a greedy", "a batch_4", "b greedy", "b batch_4"]
    assert [one[0] for one in rounds] == ["a greedy", "b greedy", "c greedy"]
    assert len({frozenset(one) for one in rounds}) == 1
    assert {len(of["greedy"]) for of in found.samples.values()} == {3}
    assert rotated([], 2) == []


@pytest.mark.parametrize("fails_at", [1, 5])
def test_a_variant_that_fails_leaves_the_others_measured(fails_at: int) -> None:
    workers: dict[str, Worker] = {
        "fast": Stub("fast", []),
        "exact": Stub("exact", [], fails_at),
    }
    found = measure(workers, (GREEDY,), 4, lambda _: None)
    assert found.failures == {"exact": "out of memory"}
    assert {name: len(of["greedy"]) for name, of in found.samples.items()} == {"fast": 4}


def test_a_process_that_cannot_open_its_variant_says_why(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    inputs = Inputs(None, None)  # type: ignore[arg-type]
    options = VariantOptions("exact", "caption", 1, absent, "none", None, inputs, tmp_path)
    worker = Worker(options, tmp_path / "worker.log")
    with pytest.raises(VariantError, match="absent"):
        worker.opened()
    worker.close()
    assert "Traceback" in (tmp_path / "worker.log").read_text()


def benchmark() -> Benchmark:
    measured = Measured(
        samples={
            "torch_f32": {"greedy": [sample(400.0 + turn) for turn in range(5)]},
            "fast": {"greedy": [sample((400.0 + turn) / 4, tokens=turn + 1) for turn in range(5)]},
        },
        peak_bytes={"torch_f32": 1 << 30, "fast": 1 << 29},
    )
    rows = {name: variant_result(measured, name, (GREEDY,), 1 << 20) for name in measured.samples}
    failed = VariantResult(not_measured="compiling int8 failed (exit 1)")
    return Benchmark(
        pipeline="mine",
        machine=describe(),
        tools={"openvino": "1"},
        threads=2,
        new_tokens=16,
        rounds=5,
        quick=False,
        artifacts={},
        tasks={"caption": TaskResult(variants={**rows, "int8": failed}, ratios=ratios(measured))},
    )


def test_the_file_can_be_read_back_and_knows_no_other_keys() -> None:
    text = benchmark().model_dump_json()
    assert Benchmark.model_validate_json(text) == benchmark()
    with pytest.raises(ValidationError):
        Benchmark.model_validate_json(text.replace('"quick"', '"quack"'))


def test_the_report_page_reads_the_file() -> None:
    data = json.loads(benchmark().model_dump_json())
    assert data["schema_version"] == VERSIONS["benchmark"]
    sources: Any = SimpleNamespace(results={"benchmark": [(Path("x"), data)]}, unreadable=[])
    ((task,),) = (file.tasks for file in benchmarks(sources))
    assert sources.unreadable == []
    assert task.variants[1].ratio == ("4 ×", "4 to 4")
    assert task.variants[2].not_measured.startswith("compiling")


def test_a_row_holds_the_ratio_and_a_failed_variant_its_reason() -> None:
    found = benchmark().tasks["caption"]
    assert found.ratios["greedy/fast/torch_f32"].median == pytest.approx(4.0)
    assert found.variants["fast"].tokens_equal == (1, 1)
    rows = markdown(benchmark()).splitlines()
    (fast,) = (row for row in rows if "`fast`" in row)
    assert "100 [100, 101] | 4.00 [4.00, 4.00]" in fast
    (failed,) = (row for row in rows if "`int8`" in row)
    assert "not measured: compiling int8 failed (exit 1)" in failed
    assert failed.count("|") == fast.count("|")


def test_matching_has_no_beams_and_a_quick_run_one_workload() -> None:
    assert [one.name for one in workloads_of("caption", quick=False)] == [
        "greedy",
        "beams_3",
        "batch_4",
    ]
    assert all(one.beams == 1 for one in workloads_of("itm", quick=False))
    assert workloads_of("vqa", quick=True) == (GREEDY,)


def test_variants_are_checked_before_any_work() -> None:
    assert chosen_variants("fast, torch_f32", quick=False) == ("torch_f32", "fast")
    for wrong in ("quick", ""):
        with pytest.raises(ConfigError, match="--variants"):
            chosen_variants(wrong, quick=False)
