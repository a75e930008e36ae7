"""One small real benchmark of the reference pipeline: real workers, real variants."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.results import Benchmark
from tests.conftest import run_stage

VARIANTS = ("torch_f32", "onnxruntime", "notebook", "exact")


@pytest.fixture(scope="module")
def folder(openvino_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert openvino_artifacts.is_dir()
    out = tmp_path_factory.mktemp("bench")
    result = run_stage(
        *("benchmarks", "--config", "configs/reference.yaml", "--task", "caption"),
        *("--variants", ",".join(VARIANTS), "--rounds", "1", "--out", str(out)),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "per token" in result.stdout
    return out


def test_every_variant_is_measured_in_all_its_parts(folder: Path) -> None:
    result = Benchmark.model_validate_json((folder / "benchmark.json").read_text())
    found = result.tasks["caption"]
    assert list(found.variants) == [*VARIANTS]
    for name in VARIANTS:
        row = found.variants[name]
        assert row.not_measured is None
        assert set(row.workloads) == {"greedy", "beams_3", "batch_4"}
        greedy = row.workloads["greedy"]
        assert greedy.step_ms is not None
        assert {"vision", "first_pass"} <= set(greedy.stages_ms)
        parts = sum(greedy.stages_ms.values()) + 15 * greedy.step_ms
        assert parts < 1.5 * greedy.total_ms.median  # stages are parts of the whole, in one unit
        assert row.peak_bytes is not None
        assert row.peak_bytes > 50 << 20
    started = found.command_line["exact"]
    assert started.images / started.images_per_s.median > started.first_caption_s.median
    assert (folder / "benchmark.svg").read_text().lstrip().startswith("<?xml")


def test_all_variants_generate_what_torch_generates(folder: Path) -> None:
    result = Benchmark.model_validate_json((folder / "benchmark.json").read_text())
    for name in ("onnxruntime", "notebook", "exact"):
        equal = result.tasks["caption"].variants[name].tokens_equal
        assert equal is not None
        # One caption greedily, one with beams, a batch of 4.
        assert equal[1] == 6
        # Forced beyond its end a caption becomes arbitrary; there a near tie may fall otherwise.
        assert equal[0] >= 0.8 * equal[1], name


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
