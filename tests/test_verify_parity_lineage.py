"""An artifact compiled from another graph is refused, even where no answer can show it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.command import select
from runtime.files.manifests import read_component_manifest
from tests.compile_private import ROOT
from tests.faults.graph_changes import graph, noise, weight
from verify.artifacts import find_artifacts
from verify.bisect.diagnosis import diagnose
from verify.parity.lineage import broken_lineage
from verify.pipeline import verify

COMPONENT = "cross_key_values"
#: Off by a tenth of what half precision rounds away.
CHANGE = weight("layers.0.key.weight", noise(5e-5))


def pipeline_file(folder: Path, target: str) -> Path:
    """A pipeline file for question answering on one target, with the artifacts in ``folder``."""
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data["artifacts"] = str(folder)
    data["tasks"] = {"vqa": data["tasks"]["vqa"]}
    data["targets"] = {target: {"precisions": ["f16"]}}
    gate = {"scenes": 2}
    data["verify"] = {"seed": 0, "component_scenes": 1, "tokens": {"onnx": gate, target: gate}}
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def private(artifacts: Path, folder: Path, target: str) -> Path:
    """A copy of question answering with one target; returns its pipeline file."""
    left_out = shutil.ignore_patterns("BM*", "openvino", "work", ".*.lock")
    shutil.copytree(artifacts / "vqa", folder / "reference" / "vqa", ignore=left_out)
    return pipeline_file(folder, target)


def compiled(config: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "compile", "--config", str(config), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", ["openvino", pytest.param("bm1684x", marks=pytest.mark.slow)])
def test_a_graph_swapped_during_compilation_is_seen(
    exported_artifacts: Path, tmp_path: Path, target: str
) -> None:
    config = private(exported_artifacts, tmp_path, target)
    compiled(config)
    task = tmp_path / "reference" / "vqa"
    kept = tmp_path / "kept"
    shutil.copytree(task / "onnx", kept)
    graph(COMPONENT, CHANGE)(task)
    compiled(config, "--component", COMPONENT)
    shutil.rmtree(task / "onnx")
    shutil.move(str(kept), task / "onnx")

    selection = select(config, component=COMPONENT, target=target)
    result = verify(selection, config)
    problems = [p for check in result.checks if not check.passed for p in check.problems]
    # An IR's layers show it too, to within float32; a chip's answers could not.
    (other,) = {problem for problem in problems if "made from another" in problem}
    assert f"made from another {COMPONENT}.onnx" in other
    assert "run: make" in other
    (found,) = find_artifacts(selection)
    diagnosis = diagnose(selection, found, found.targets[0], "exact")
    assert diagnosis.verdict is not None
    assert diagnosis.verdict.part == "target"
    assert COMPONENT in str(diagnosis.verdict)


def test_a_manifest_cannot_claim_another_source(openvino_artifacts: Path, tmp_path: Path) -> None:
    for folder in ("onnx", "openvino/f16"):
        shutil.copytree(openvino_artifacts / "vqa" / folder, tmp_path / "reference/vqa" / folder)
    shutil.copytree(openvino_artifacts / "vqa" / "processor", tmp_path / "reference/vqa/processor")
    shutil.copy(openvino_artifacts / "vqa" / "manifest.json", tmp_path / "reference/vqa")
    config = pipeline_file(tmp_path, "openvino")
    (task,) = find_artifacts(select(config))
    (artifacts,) = task.targets
    for manifest in artifacts.components.values():
        assert broken_lineage(manifest, task.onnx.components) is None
        data = json.loads(manifest.path.read_text())
        name = next(iter(data["key_inputs"]["onnx"]))
        data["key_inputs"]["onnx"][name] = "0" * 64
        manifest.path.write_text(json.dumps(data))
        changed = read_component_manifest(manifest.path)
        assert "key_inputs" in str(broken_lineage(changed, task.onnx.components))
