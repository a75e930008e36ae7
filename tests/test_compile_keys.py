"""When work is skipped, and what is rebuilt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from compile import pipeline as pipeline_module
from compile.backend import Job
from compile.bmodel import plan as bmodel_plan
from compile.bmodel.plan import BModelPlan
from compile.ir import backend as openvino_ir
from pipeline.manifest import key_of
from pipeline.tpu_tools import command_lines
from pipeline.tpu_tools.process import MemoryBudget, VendorTools
from pipeline.work_cache import cached
from tests.compile_private import ROOT, PrivatePipeline, private_pipeline

SMALLEST = "vision_projection"
EVERY = ("openvino", "bm1684", "bm1684x", "bm1688")


@pytest.fixture
def decoder(exported_artifacts: Path, tmp_path: Path) -> PrivatePipeline:
    return private_pipeline(exported_artifacts, tmp_path, "caption", "text_decoder")


@pytest.fixture
def smallest(exported_artifacts: Path, tmp_path: Path) -> PrivatePipeline:
    return private_pipeline(exported_artifacts, tmp_path, "itm", SMALLEST)


def keys(pipeline: PrivatePipeline, component: str = "text_decoder") -> dict[str, str]:
    """The key of one component for every target, and of the steps that chips share."""
    source = pipeline.source(component)
    backends = pipeline_module.backends(MemoryBudget(1), VendorTools())
    result = {}
    for target in EVERY:
        backend = backends[pipeline.job(component, target).target.backend]
        plan = backend.plan(pipeline.job(component, target), source)
        result[target] = key_of(backend.key_inputs(plan))
        if isinstance(plan, BModelPlan):
            result[f"{target} prepared"] = plan.preparation.intermediate.folder.name
            result[f"{target} top"] = plan.nets[-1].top.folder.name
    return result


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


CHIP_KEYS = {f"{chip}{what}" for chip in EVERY[1:] for what in ("", " prepared", " top")}


def test_shapes_matter_to_chips_only(decoder: PrivatePipeline) -> None:
    before = keys(decoder)
    decoder.shapes()["past_tokens"] += 1
    decoder.write()
    assert changed(before, keys(decoder)) == CHIP_KEYS


def test_another_graph_rebuilds_everything(decoder: PrivatePipeline) -> None:
    before = keys(decoder)
    path = decoder.root / "caption" / "onnx" / "text_decoder.manifest.json"
    graph = decoder.root / "caption" / "onnx" / "text_decoder.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    assert before.keys() == keys_with_new_digest(decoder, path, graph).keys()
    assert changed(before, keys(decoder)) == set(before)


def keys_with_new_digest(decoder: PrivatePipeline, path: Path, graph: Path) -> dict[str, str]:
    from pipeline.manifest import file_record

    data = json.loads(path.read_text())
    data["files"]["text_decoder.onnx"] = asdict(file_record(graph))
    path.write_text(json.dumps(data))
    return keys(decoder)


def test_a_vendor_version_matters_to_its_own_artifacts(
    decoder: PrivatePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(decoder)
    monkeypatch.setattr(command_lines, "version", lambda: "9.9.9")
    built_by_vendor = {key for key in CHIP_KEYS if not key.endswith("prepared")}
    assert changed(before, keys(decoder)) == built_by_vendor


def test_an_openvino_version_matters_to_the_ir_only(
    decoder: PrivatePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(decoder)
    monkeypatch.setattr(openvino_ir, "tool_versions", lambda *names: dict.fromkeys(names, "9.9"))
    assert changed(before, keys(decoder)) == {"openvino"}


def test_stage_source_matters_to_everything(
    decoder: PrivatePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(decoder)
    for module in (openvino_ir, bmodel_plan):
        monkeypatch.setattr(module, "source_digest", lambda *_roots, **_chosen: "another")
    assert changed(before, keys(decoder)) == set(before)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("rewrites", (), {"bm1684x", "bm1684x prepared", "bm1684x top"}),
        ("attention_fusion", "off", {"bm1684x", "bm1684x prepared", "bm1684x top"}),
        ("borders", "float32", {"bm1684x"}),
        ("address_mode", None, {"bm1684x"}),
        ("layer_group_search", 2, {"bm1684x"}),
        ("cores", 2, {"bm1684x"}),
        ("combine_nets", False, {"bm1684x"}),
        ("memory_layout_mib", None, {"bm1684x"}),
        ("float32", "exact", set()),
    ],
)
def test_only_chip_settings_that_matter_rebuild(
    decoder: PrivatePipeline,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    value: Any,
    expected: set[str],
) -> None:
    before = keys(decoder)
    original = PrivatePipeline.job

    def job(self: PrivatePipeline, component: str, target: str, precision: Any = None) -> Job:
        found = original(self, component, target, precision)
        if target != "bm1684x":
            return found
        other = found.target.model_copy(update={field: value})
        return Job(found.layout, found.task, found.component, other, found.precision)

    monkeypatch.setattr(PrivatePipeline, "job", job)
    assert changed(before, keys(decoder)) == expected


def test_unchanged_artifacts_are_reused_and_damaged_ones_rebuilt(
    smallest: PrivatePipeline,
) -> None:
    run = ("--component", SMALLEST, "--target", "openvino,bm1684x")
    first = smallest.run(*run)
    assert first.returncode == 0, first.stderr
    assert "2 built, 0 unchanged" in first.stderr
    assert "0 built, 2 unchanged" in smallest.run(*run).stderr

    again = smallest.run(*run, "--precision", "f16,f32")
    assert "2 built, 2 unchanged" in again.stderr
    assert len(smallest.manifests()) == 4
    work = smallest.root / "work"
    assert len(list(work.glob("[!.]*_top.*"))) == 1, "precisions share the top-level MLIR"

    file = smallest.root / "itm" / "openvino" / "f16" / f"{SMALLEST}.bin"
    file.write_bytes(file.read_bytes()[:-1])
    assert "1 built, 1 unchanged" in smallest.run(*run).stderr
    assert (
        "1 built" in smallest.run("--component", SMALLEST, "--target", "openvino", "--force").stderr
    )


def test_only_long_unused_intermediates_are_removed(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "content").write_text("made")

    old = cached(tmp_path, "net", {"version": 1}, make)
    used = cached(tmp_path, "net", {"version": 2}, make)
    two_hours_ago = time.time() - 7200
    os.utime(old / "contents.json", (two_hours_ago, two_hours_ago))
    new = cached(tmp_path, "net", {"version": 3}, make)
    assert [path.exists() for path in (old, used, new)] == [False, True, True]


def test_damaged_intermediates_are_made_anew(smallest: PrivatePipeline) -> None:
    run = ("--component", SMALLEST, "--target", "bm1684x")
    assert smallest.run(*run).returncode == 0
    (mlir,) = (smallest.root / "work").glob("*_top.*/*.mlir")
    text = mlir.read_text()
    mlir.write_text(text[: len(text) // 2])
    result = smallest.run(*run, "--force")
    assert result.returncode == 0, result.stderr
    # Its first lines name the module; locations after them may differ between runs.
    assert len(mlir.read_text()) == len(text)


def test_an_unchanged_run_loads_no_heavy_library(reference_artifacts: Path) -> None:  # noqa: ARG001
    script = (
        "import sys\n"
        "from compile.__main__ import app\n"
        "try:\n"
        "    app(['--config', 'configs/reference.yaml'])\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'openvino', 'torch', 'transformers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "compile: 0 built, 53 unchanged" in result.stderr
