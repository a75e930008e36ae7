"""A full-size captioner through every stage (make test-slow)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import BlipForConditionalGeneration

from scripts.make_random_checkpoint import full_size_config
from tests.conftest import ROOT, run_stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CHECKPOINT = ROOT / "models" / "artifacts" / "checkpoints" / "grown-base-caption"
CONFIG = "configs/full-size.yaml"
BERT = "models/vocabulary/bert-base-uncased-vocab.txt"


@pytest.fixture(scope="module")
def artifacts() -> Path:
    if not (CHECKPOINT / "model.safetensors").is_file():
        maker = ("scripts.grow_checkpoint", "--image-size", "384", "--vocabulary", BERT)
        made = run_stage(*maker, "--positions", "512", "--out", str(CHECKPOINT))
        assert made.returncode == 0, made.stderr
    for stage in ("export", "compile"):
        result = run_stage(stage, "--config", CONFIG, timeout_s=3000)
        assert result.returncode == 0, result.stderr
    return ROOT / "models" / "artifacts" / "full-size" / "caption"


def manifests(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in folder.glob("**/*.manifest.json")]


def test_the_checkpoint_has_the_public_ones_shapes(artifacts: Path) -> None:  # noqa: ARG001
    with torch.device("meta"):
        model = BlipForConditionalGeneration(full_size_config("base", 384))
    wanted = {name: [*tensor.shape] for name, tensor in model.named_parameters()}
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as stored:
        found = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
    assert found == wanted


def test_every_target_has_every_component(artifacts: Path) -> None:
    found = {(m["target"], m["component"]) for m in manifests(artifacts)}
    targets = ("onnx", "bm1684", "bm1684x", "bm1688")
    components = ("vision_encoder", "cross_key_values", "text_decoder")
    # OpenVINO's vision encoder computes the cross keys and values, too.
    assert found == {
        *((target, component) for target in targets for component in components),
        ("openvino", "vision_encoder"),
        ("openvino", "text_decoder"),
    }


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


OUTLIERS = """
name: outliers
tasks:
  caption:
    checkpoint: models/artifacts/checkpoints/outliers
    shapes: {text_tokens: 8, past_tokens: 31}
targets: {openvino: {precisions: [int8]}}
verify:
  tokens: {onnx: {scenes: 4}, openvino: {scenes: 100}}
  gates: {caption: {f32: {min_agreement: 1.0}, int8: {min_agreement: 0.99}}}
"""


def test_integers_carry_activation_outliers(tmp_path: Path) -> None:
    """Without SmoothQuant 97 of 100 captions stay, which this gate refuses."""
    config = tmp_path / "outliers.yaml"
    config.write_text(OUTLIERS)
    sizes = ("--width", "2", "--layers", "4", "--outliers")
    out = str(CHECKPOINT.parent / "outliers")
    assert run_stage("scripts.grow_checkpoint", *sizes, "--out", out).returncode == 0
    for stage in (("export",), ("compile",), ("verify", "evaluate")):
        more = ("--target", "openvino", "--items", "100") if len(stage) > 1 else ()
        result = run_stage(*stage, "--config", str(config), *more, timeout_s=1800)
        assert result.returncode == 0, result.stdout + result.stderr
