"""A full-size captioner through every stage (make test-slow)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CHECKPOINT = ROOT / "models" / "artifacts" / "checkpoints" / "random-base-caption"
CONFIG = "configs/random-base.yaml"


@pytest.fixture(scope="module")
def artifacts() -> Path:
    if not (CHECKPOINT / "model.safetensors").is_file():
        maker = ("scripts.make_random_checkpoint", "--size", "base", "--task", "caption")
        assert run_stage(*maker, "--out", str(CHECKPOINT)).returncode == 0
    for stage in ("export", "compile"):
        result = run_stage(stage, "--config", CONFIG, timeout_s=3000)
        assert result.returncode == 0, result.stderr
    return ROOT / "models" / "artifacts" / "random-base" / "caption"


def manifests(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in folder.glob("**/*.manifest.json")]


def test_every_target_has_every_component(artifacts: Path) -> None:
    found = {(m["target"], m["component"]) for m in manifests(artifacts)}
    targets = ("onnx", "openvino", "bm1684", "bm1684x", "bm1688")
    components = ("vision_encoder", "cross_key_values", "text_decoder")
    assert found == {(target, component) for target in targets for component in components}


def test_chips_record_the_vendor_estimate(artifacts: Path) -> None:
    for manifest in manifests(artifacts):
        if manifest["target"] in ("bm1684x", "bm1688"):
            for net in manifest["nets"]:  # type: ignore[attr-defined]
                assert net["estimate"]["latency_ms"] > 0


def test_ir_equals_onnxruntime_and_bmodels_wait_for_full(artifacts: Path) -> None:
    result = run_stage("verify", "--config", CONFIG, timeout_s=3000)
    assert result.returncode == 0, result.stdout + result.stderr
    verdict = json.loads((artifacts.parent / "verify.json").read_text())
    assert verdict["passed"]
    assert {check["target"] for check in verdict["checks"]} == {"onnx", "openvino"}
    assert len(verdict["not_simulated"]) == 3
