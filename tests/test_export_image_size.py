"""Pictures of another size than the checkpoint's: positions as HuggingFace interpolates them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from configs.errors import BlipEdgeError
from configs.layout import Layout
from export.pipeline import plan, run
from pipeline.command import select
from pipeline.manifest import TaskManifest, read_manifest
from pipeline.scenes import draw, scenes
from tests.export_checkpoints import make_checkpoint, write_pipeline
from verify.checkpoint.checkpoint import Checkpoint

SIZE, TOKENS = 48, 37  # the checkpoint has 32 and 17


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "caption", "caption")


def export(folder: Path, checkpoint: Path, size: int | None) -> Path:
    options = {"caption": {"image_size": size}} if size else {}
    config = write_pipeline(folder, {"caption": checkpoint}, **options)
    selection = select(config)
    run(selection, plan(selection))
    return config


def test_another_size_gives_what_huggingface_interpolates(checkpoint: Path, tmp_path: Path) -> None:
    config = export(tmp_path, checkpoint, SIZE)
    layout = Layout(select(config).pipeline)
    manifest = read_manifest(TaskManifest, layout.task_manifest("caption"))
    assert manifest.dimensions.image_tokens == TOKENS
    assert (manifest.image.height, manifest.image.width) == (SIZE, SIZE)
    model = transformers.BlipForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = transformers.BlipImageProcessorPil.from_pretrained(checkpoint)
    image = draw(next(iter(scenes(1))))
    size = {"height": SIZE, "width": SIZE}
    pixels = processor(image, size=size, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        seen = model.vision_model(pixels, interpolate_pos_encoding=True)
        plain = model.vision_model(processor(image, return_tensors="pt")["pixel_values"])
    expected = seen.last_hidden_state.numpy()
    path = layout.onnx("caption", "vision_encoder").file(".onnx")
    (found,) = onnxruntime.InferenceSession(path).run(None, {"pixel_values": pixels.numpy()})
    assert found.shape == expected.shape == (1, TOKENS, plain.last_hidden_state.shape[2])
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    # The reference of the verification is of the same size.
    reference = Checkpoint(layout, "caption", None)
    assert torch.equal(reference.pixel_values([image]), pixels)
    with torch.no_grad():
        again = reference.model.vision_model(pixels).last_hidden_state.numpy()
    assert np.array_equal(again, expected)
    config = write_pipeline(tmp_path, {"caption": checkpoint})
    (made,) = plan(select(config))
    assert not any(item.reusable for item in made.items)
    assert not made.task_item.reusable


def test_a_size_between_patches_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BlipEdgeError) as caught:
        export(tmp_path, checkpoint, 50)
    assert str(caught.value) == (
        "tasks.caption.image_size: 50 is not a multiple of the checkpoint's patch size 8; choose 48"
    )


def test_the_refusal_of_another_size_names_the_option(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    images = folder / "preprocessor_config.json"
    data = json.loads(images.read_text())
    images.write_text(json.dumps({**data, "size": {"height": SIZE, "width": SIZE}}))
    with pytest.raises(BlipEdgeError, match=rf"size 48 x 48 .*tasks\.caption\.image_size: {SIZE}"):
        export(tmp_path, folder, None)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["image_size"] = SIZE
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        BlipEdgeError, match=rf"position_embedding .*tasks\.caption\.image_size: {SIZE}"
    ):
        export(tmp_path, folder, None)
