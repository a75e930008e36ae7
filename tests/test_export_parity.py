"""The exported graphs compute what the HuggingFace model computes, whatever its sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import pytest
import torch

from configs.errors import ParityError
from configs.schema import TASK_COMPONENTS
from export.components import layers
from export.pipeline import plan, run
from pipeline.command import select
from pipeline.manifest import ComponentManifest, TaskManifest, read_manifest
from tests.export_checkpoints import Sizes, make_checkpoint, write_pipeline

#: relative to the output's scale
TOLERANCE = 1e-4

SIZES = {
    "small": Sizes(),
    "deep": Sizes(vision_layers=3, text_layers=3, image=40, patch=8, vision_heads=4),
    "one_layer": Sizes(vision_layers=1, text_layers=1, image=24, patch=12, text_heads=1),
    "large": Sizes(vision_width=48, vision_heads=3, text_width=32, text_heads=2),
    "untied": Sizes(tied=False),
}
CASES = [
    (task, name) for name in SIZES for task in TASK_COMPONENTS if (task, name) != ("vqa", "large")
]


def export(config: Path, **options: Any) -> int:
    selection = select(config)
    return run(selection, plan(selection, **options), **options)


def replay(folder: Path, component: str) -> dict[str, float]:
    """Largest error per case of the ONNX against the recorded model and wrapper outputs."""
    session = onnxruntime.InferenceSession(folder / f"{component}.onnx")
    names = [output.name for output in session.get_outputs()]
    record = numpy.load(folder / f"{component}.reference.npz")
    worst: dict[str, float] = {}
    for case in sorted({key.split("/")[0] for key in record}):
        start = f"{case}/inputs/"
        inputs = {key.removeprefix(start): record[key] for key in record if key.startswith(start)}
        outputs = dict(zip(names, session.run(None, inputs), strict=True))
        compared = 0
        for kind in ("outputs.model", "outputs.wrapper"):
            for name, value in outputs.items():
                if f"{case}/{kind}/{name}" not in record:
                    assert (case, kind) == ("first_pass_padded", "outputs.model")
                    continue
                expected = record[f"{case}/{kind}/{name}"]
                assert value.shape == expected.shape
                assert value.dtype == expected.dtype
                assert numpy.isfinite(value).all()
                error = numpy.abs(value - expected).max() / numpy.abs(expected).max()
                worst[case] = max(worst.get(case, 0.0), float(error))
                compared += 1
        assert compared
    return worst


@pytest.mark.parametrize(("task", "name"), CASES)
def test_random_checkpoints(tmp_path: Path, task: str, name: str) -> None:
    sizes = SIZES[name]
    checkpoint = make_checkpoint(tmp_path / "checkpoint", task, sizes)
    assert export(write_pipeline(tmp_path, {task: checkpoint})) == len(TASK_COMPONENTS[task]) + 1
    folder = tmp_path / "artifacts" / "test" / task
    manifest = read_manifest(TaskManifest, folder / "manifest.json")
    assert manifest.dimensions.image_tokens == (sizes.image // sizes.patch) ** 2 + 1
    assert manifest.dimensions.vision_hidden_size == sizes.vision_width
    for component in TASK_COMPONENTS[task]:
        errors = replay(folder / "onnx", component)
        assert errors
        assert max(errors.values()) <= TOLERANCE, (component, errors)


@pytest.mark.parametrize("task", TASK_COMPONENTS)
def test_reference_checkpoints(exported_artifacts: Path, task: str) -> None:
    for component in TASK_COMPONENTS[task]:
        errors = replay(exported_artifacts / task / "onnx", component)
        assert max(errors.values()) <= TOLERANCE, (component, errors)


def test_recorded_decoder_cases(exported_artifacts: Path) -> None:
    """Past lengths 0, 1, 2 and the end of the default caches are all there to be replayed."""
    caption = replay(exported_artifacts / "caption" / "onnx", "text_decoder")
    assert {"first_pass", "first_pass_padded", "step_0", "step_1", "step_2", "step_31"} <= set(
        caption
    )
    answer = replay(exported_artifacts / "vqa" / "onnx", "text_decoder")
    assert {"step_0", "step_1", "step_2", "step_15", "padded_question_0"} <= set(answer)


def test_reference_inputs_are_not_degenerate(exported_artifacts: Path) -> None:
    for task, components in TASK_COMPONENTS.items():
        for component in components:
            record = numpy.load(exported_artifacts / task / "onnx" / f"{component}.reference.npz")
            outputs = [record[key] for key in record if "/outputs.model/" in key]
            assert all(value.std() > 1e-3 for value in outputs), (task, component)


def test_wrong_wrapper_is_refused_and_keeps_the_last_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_pipeline(tmp_path, {"itm": make_checkpoint(tmp_path / "c", "itm")})
    export(config)
    folder = tmp_path / "artifacts" / "test" / "itm" / "onnx"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def unscaled(query: Any, key: Any, value: Any, mask: Any = None) -> torch.Tensor:
        return layers.attend(query * 1.001, key, value, mask)

    monkeypatch.setattr("export.components.vision_encoder.attend", unscaled)
    with pytest.raises(ParityError, match="image_embeds differs from the HuggingFace model"):
        export(config, force=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert read_manifest(ComponentManifest, folder / "vision_encoder.manifest.json")
