"""A public checkpoint from the hub, exported and verified end to end (make test-network)."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, run_stage

pytestmark = [pytest.mark.network, pytest.mark.timeout(3600)]


def test_public_captioning_checkpoint(tmp_path: Path) -> None:
    pipeline = yaml.safe_load((ROOT / "configs" / "blip-base.yaml").read_text())
    pipeline["tasks"] = {"caption": pipeline["tasks"]["caption"]}
    pipeline["targets"] = {"openvino": pipeline["targets"]["openvino"]}
    gates = pipeline["verify"]["tokens"]
    pipeline["verify"]["tokens"] = {name: gates[name] for name in ("onnx", "openvino")}
    pipeline["artifacts"] = str(tmp_path / "artifacts")
    config = tmp_path / "pipeline.yaml"
    config.write_text(yaml.safe_dump(pipeline))
    for stage in ("export", "compile", "verify"):
        result = run_stage(stage, "--config", str(config), timeout_s=3000)
        assert result.returncode == 0, result.stdout + result.stderr
