"""Precisions of chips: weight-only integers, and components that differ from their set."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import load_target
from tests.compile_private import PrivatePipeline, private_pipeline

pytestmark = pytest.mark.usefixtures("exported_artifacts")


@pytest.fixture
def pipeline(exported_artifacts: Path, tmp_path: Path) -> PrivatePipeline:
    private = private_pipeline(exported_artifacts, tmp_path, "itm", "text_encoder_unimodal")
    private.data["targets"] = {
        "bm1684x": {
            "precisions": ["f16", "w8f16", "w4f16"],
            "components": {"w4f16": {"text_encoder_unimodal": "w8f16"}},
        }
    }
    private.write()
    return private


def test_a_set_is_named_by_its_precision_and_says_what_a_component_really_is(
    pipeline: PrivatePipeline,
) -> None:
    result = pipeline.run("--component", "text_encoder_unimodal")
    assert result.returncode == 0, result.stderr
    built = {manifest.precision: manifest for manifest in pipeline.manifests().values()}
    assert {name: manifest.built_as for name, manifest in built.items()} == {
        "f16": None,
        "w8f16": None,
        "w4f16": "w8f16",
    }
    sizes = {
        name: next(r.size_bytes for file, r in manifest.files.items() if file.endswith(".bmodel"))
        for name, manifest in built.items()
    }
    assert sizes["w8f16"] < sizes["f16"]
    assert sizes["w4f16"] == sizes["w8f16"]
    assert all(f"_bm1684x_{name}_1b.bmodel" in " ".join(m.files) for name, m in built.items())
    deploys = [command for command in built["w4f16"].commands if command[0] == "model_deploy.py"]
    assert all(command[command.index("--quantize") + 1] == "W8F16" for command in deploys)


def test_a_component_override_that_a_chip_lacks_is_refused_before_any_work(
    pipeline: PrivatePipeline,
) -> None:
    pipeline.data["targets"]["bm1684x"]["components"]["w4f16"] = {"text_encoder_unimodal": "int4"}
    pipeline.write()
    result = pipeline.run()
    assert result.returncode == 2
    assert "components.w4f16.text_encoder_unimodal" in result.stderr
    assert "choose one of: f32, f16" in result.stderr
    assert not pipeline.manifests()


@pytest.mark.parametrize("precision", ["f16", "w8f16", "w4f16"])
def test_bm1684_has_no_half_precision(precision: str) -> None:
    assert precision not in load_target("bm1684").precisions
