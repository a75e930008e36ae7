"""Estimates: what is read from the compiler's files, and how it adds up to whole answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from compile.bmodel.estimates.report import EstimateReport
from compile.bmodel.work_counts import read_operators, read_profiles
from pipeline.tpu_tools.answer_times import parts, total

ROOT = Path(__file__).resolve().parent.parent

PROFILE = """ENGINE_BD                         ENGINE_GDMA
                                  Load_1|GDMA_TENSOR|s:0|b:0|g:1|e:299|t:300|dr:0|sz:1536|bw:12.66
MatMul_2|MM2|s:0|b:1|g:1|e:599|t:600   Load_2|GDMA_TENSOR|s:0|b:0|g:1|e:99|t:100|dr:1|sz:4|bw:1.0
API_END total_cycle:1000|b:1|g:1
TCYC : 1000
GDMA SUMMARY : |dr[0] S2L:700|dr[1] L2S:200|dr[2] S2S:50|dr[3] L2L:9
DDR BW USAGE : 60.00000000%

flops: 2000, runtime: 0.001000ms, ComputationAbility: 1T
"""


def test_a_profile_tells_operations_bytes_and_the_busier_engine(tmp_path: Path) -> None:
    first, second = tmp_path / "compiler_profile_0.txt", tmp_path / "compiler_profile_1.txt"
    first.write_text(PROFILE)
    second.write_text(PROFILE)
    one = read_profiles([first])
    assert one is not None
    assert one.operations == {"all": 2000}
    # L2L moves within the chip.
    assert one.moved_bytes == 950
    assert (one.compute_share, one.memory_share, one.bandwidth_share) == (0.6, 0.4, 0.6)
    assert one.bound == "compute"
    both = read_profiles([first, second])
    assert both is not None
    # The compiler gives each core the whole bandwidth: the sum shows it.
    assert (both.operations, both.moved_bytes, both.bandwidth_share) == ({"all": 2000}, 1900, 1.2)
    assert read_profiles([first, tmp_path / "compiler_profile_2.txt"]) == one
    assert read_profiles([tmp_path / "compiler_profile_2.txt", first]) is None
    second.write_text("flops: 1")
    assert read_profiles([second]) is None


def operator(name: str, operands: list[str], result: str, *, local: bool) -> dict[str, object]:
    def tensor(text: str) -> dict[str, object]:
        shape = [int(size) for size in text.strip("<>").split("x")[:-1]]
        return {"memory_type": text, "shape": shape}

    return {
        "opcode": name,
        "is_local": local,
        "operands": [tensor(text) for text in operands] + [{}],
        "results": [tensor(result)],
    }


def test_operators_are_counted_by_arithmetic(tmp_path: Path) -> None:
    path = tmp_path / "net.bmodel.json"
    listed = [
        operator("tpu.MatMul", ["<2x8xf32>", "<8x4xf32>"], "<2x4xf32>", local=False),
        operator("tpu.Reshape", ["<2x4xf32>"], "<8xf32>", local=False),
        operator("tpu.Load", ["<2x8xsi8>"], "<2x8xsi8>", local=True),
        operator("tpu.MatMul", ["<2x8xsi8>", "<8x4xsi8>"], "<2x4xsi8>", local=True),
        operator("tpu.Store", ["<2x4xsi8>"], "<2x4xsi8>", local=True),
    ]
    path.write_text(json.dumps(listed))
    work = read_operators(path)
    assert work is not None
    assert work.operations == {"f32": 2 * 2 * 4 * 8, "int8": 2 * 2 * 4 * 8}
    assert work.moved_bytes == 4 * (16 + 32 + 8) + 16 + 8
    assert work.bound is None


def test_whole_answers_call_each_net_as_often_as_the_runtime_does() -> None:
    first, step = ("text_decoder", "first_pass"), ("text_decoder", "step")
    (caption,) = parts("caption", {first, step}, 12)
    assert (caption.calls[first], caption.calls[step]) == (1, 11)
    (short,) = parts("caption", {first, step}, 1)
    assert step not in short.calls
    image, question = parts("vqa", {step}, 3)
    assert image.calls == {("vision_encoder", "main"): 1}
    assert question.calls[step] == 3
    assert question.calls[("text_encoder", "main")] == 1
    match, contrastive = parts("itm", set(), 12)
    assert set(match.calls) & set(contrastive.calls) == set()
    assert total(image, {("vision_encoder", "main"): 2.5}) == 2.5
    assert total(image, {}) is None


def test_the_command_writes_every_net_part_and_file(
    reference_artifacts: Path, tmp_path: Path
) -> None:
    ignored = shutil.ignore_patterns("work", "logs", "onnx", "openvino")
    shutil.copytree(
        reference_artifacts, tmp_path / "reference", ignore=ignored, copy_function=os.symlink
    )
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    config = tmp_path / "pipeline.yaml"
    config.write_text(yaml.safe_dump({**data, "artifacts": str(tmp_path)}))
    done = subprocess.run(
        [sys.executable, "-m", "compile", "estimate", "--config", str(config), "--tokens", "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr
    # Not a word is shortened where the output is narrow.
    assert "…" not in done.stdout
    assert {"vision_encoder", "device MB", "published f32 ms"} <= set(
        re.split(r"\s*[│┃]\s*|\n", done.stdout)
    )
    assert "not measurements" in done.stderr
    path = tmp_path / "reference" / "estimate.json"
    report = EstimateReport.model_validate_json(path.read_text())
    chips = {net.target for net in report.nets}
    assert chips == {"bm1684", "bm1684x", "bm1688"}
    for net in report.nets:
        assert net.work is not None
        assert net.work.moved_bytes > 0
        assert (net.latency_ms is None) == (net.target == "bm1684")
        assert (net.bound is None) == (net.target == "bm1684")
    by_part = {(p.target, p.task, p.part): p for p in report.parts}
    caption = by_part["bm1684x", "caption", "caption"]
    own = {(n.component, n.net): n.latency_ms for n in report.nets if n.target == "bm1684x"}
    assert caption.latency_ms is not None
    assert caption.latency_ms > 3 * (own["text_decoder", "step"] or 0.0)
    assert caption.published_f32_ms == 332.0
    assert by_part["bm1684", "itm", "match"].latency_ms is None
    assert set(by_part["bm1684", "itm", "match"].operations or {}) == {"f32"}
    assert {file.what for file in report.files} >= {"combined", "vision_encoder"}
