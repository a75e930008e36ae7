"""One small real benchmark of the reference pipeline: real workers, real variants."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.results import Benchmark
from tests.conftest import run_stage

VARIANTS = ("torch_f32", "onnxruntime", "notebook", "exact")


@pytest.fixture(scope="module")
def measured(openvino_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert openvino_artifacts.is_dir()
    out = tmp_path_factory.mktemp("bench")
    result = run_stage(
        *("benchmarks", "--config", "configs/reference.yaml", "--task", "caption"),
        *("--variants", ",".join(VARIANTS), "--rounds", "1", "--no-command-line"),
        *("--out", str(out), "--fresh"),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "per token" in result.stdout
    return out


def test_every_variant_is_measured_in_all_its_parts(measured: Path) -> None:
    result = Benchmark.model_validate_json((measured / "benchmark.json").read_text())
    found = result.tasks["caption"]
    assert list(found.variants) == [*VARIANTS]
    for name in VARIANTS:
        row = found.variants[name]
        assert row.not_measured is None
        greedy = row.workloads["greedy"]
        assert greedy.step_ms is not None
        assert {"vision", "first_pass"} <= set(greedy.stages_ms)
        parts = sum(greedy.stages_ms.values()) + 15 * greedy.step_ms.median
        assert parts < 1.5 * greedy.total_ms.median  # stages are parts of the whole, in one unit
        assert row.peak_bytes is not None
        assert row.peak_bytes > 50 << 20
    # The small model is not what the requirements are about.
    assert found.acceptance == ()
    assert set(found.limits) == {"gemm_f32", "gemm_bf16", "gemm_int8", "read_bandwidth"}


def test_all_variants_generate_what_torch_generates(measured: Path) -> None:
    result = Benchmark.model_validate_json((measured / "benchmark.json").read_text())
    for name in ("onnxruntime", "notebook", "exact"):
        equal = result.tasks["caption"].variants[name].tokens_equal
        assert equal is not None
        # One caption greedily, one with beams, a batch of 4 (and of 16 for some).
        assert equal[1] >= 6
        # Forced beyond its end a caption becomes arbitrary; there a near tie may fall otherwise.
        assert equal[0] >= 0.8 * equal[1], name


def test_the_plot_and_the_raw_samples_are_there(measured: Path) -> None:
    assert (measured / "benchmark.svg").read_text().lstrip().startswith("<?xml")
    samples = json.loads((measured / "benchmark.json").read_text())["tasks"]["caption"]["samples"]
    greedy = [s for s in samples if s["workload"] == "greedy" and s["block"] == "answer"]
    assert sorted(s["variant"] for s in greedy) == sorted(VARIANTS)
    assert all(len(s["steps_ms"]) == 15 for s in greedy)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--variants", "fastest"), "--variants fastest: unknown"),
        (("--config", "configs/absent.yaml"), "no such file"),
        (("--config", "configs/reference.yaml", "--task", "ocr"), "--task ocr"),
    ],
)
def test_a_wrong_option_ends_with_one_line(arguments: tuple[str, ...], said: str) -> None:
    result = run_stage("benchmarks", *arguments)
    assert result.returncode == 2
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
