"""Every shipped pipeline and target file loads, and says only what can be built."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from configs.layout import CONFIGS_FOLDER, Layout, checkpoint_folder
from configs.load import load_pipeline, load_target, target_names
from configs.precisions import PRECISIONS
from configs.schema import TASK_COMPONENTS
from verify.answers.metrics.gates import fitting
from verify.plan import OPENVINO_MODES

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
def test_every_listed_precision_has_a_gate_of_its_own(path: Path) -> None:
    pipeline = load_pipeline(path)
    for task, (name, target) in product(pipeline.tasks, pipeline.targets.items()):
        gates = pipeline.verify.gates.get(task, {})
        for precision, mode in product(target.precisions, OPENVINO_MODES):
            found = fitting(gates, target=name, precision=precision, mode=mode)
            asked = [gate.min_agreement for _, gate in found]
            assert any(share is not None for share in asked), f"{task} {name}.{precision}"


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_tables_and_scenes_of_the_shipped_checkpoints_serve_no_others(path: Path) -> None:
    pipeline = load_pipeline(path)
    if all(checkpoint_folder(task.checkpoint) for task in pipeline.tasks.values()):
        return
    for target in pipeline.targets.values():
        assert target.quantize_tables is None
        assert not any(PRECISIONS[precision].calibrated for precision in target.precisions)


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
