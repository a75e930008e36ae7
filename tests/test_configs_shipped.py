"""Every shipped pipeline and target file loads, and says only what can be built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from configs.layout import CONFIGS_FOLDER, Layout, checkpoint_folder
from configs.load import load_pipeline, load_target, target_names
from configs.schema import TASK_COMPONENTS

PIPELINES = sorted(CONFIGS_FOLDER.glob("*.yaml"))
PIPELINES = [path for path in PIPELINES if path.name != "tolerances.yaml"]


def test_there_are_pipelines_and_targets() -> None:
    assert {path.stem for path in PIPELINES} >= {
        "reference",
        "blip-base",
        "blip-large",
        "random-base",
    }
    assert set(target_names()) >= {"openvino", "bm1684", "bm1684x", "bm1688"}


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_pipeline_loads_and_gates_every_target(path: Path) -> None:
    pipeline = load_pipeline(path)
    assert pipeline.name == path.stem
    assert set(pipeline.tasks) <= set(TASK_COMPONENTS)
    assert set(pipeline.verify.tokens) == {"onnx", *pipeline.targets}


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_hub_checkpoints_are_pinned_to_a_commit(path: Path) -> None:
    for task in load_pipeline(path).tasks.values():
        on_hub = checkpoint_folder(task.checkpoint) is None
        assert bool(re.fullmatch(r"[0-9a-f]{40}", task.revision or "")) == on_hub


@pytest.mark.parametrize("name", target_names())
def test_target_loads(name: str) -> None:
    target = load_target(name)
    assert target.default_precision in target.precisions


def test_reference_checkpoints_are_local() -> None:
    for task in load_pipeline(CONFIGS_FOLDER / "reference.yaml").tasks.values():
        folder = checkpoint_folder(task.checkpoint)
        assert folder is not None
        assert (folder / "model.safetensors").is_file()


def test_artifact_paths_follow_the_vendor_convention() -> None:
    layout = Layout(load_pipeline(CONFIGS_FOLDER / "reference.yaml"))
    chip = layout.artifact("caption", "text_decoder", load_target("bm1684x"), "f16")
    assert chip.folder.name == "BM1684X"
    assert chip.stem == "caption_text_decoder_bm1684x_f16_1b"
    intel = layout.artifact("caption", "text_decoder", load_target("openvino"), "f16")
    assert intel.folder.parts[-2:] == ("openvino", "f16")
    assert intel.file(".xml").name == "text_decoder.xml"
