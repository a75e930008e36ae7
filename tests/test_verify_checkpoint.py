"""The reference that verification compares with is the whole checkpoint, loaded as it is stored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from configs.errors import InputError
from configs.layout import Layout
from configs.load import load_pipeline
from tests.export_checkpoints import make_checkpoint, write_pipeline
from verify.checkpoint.checkpoint import Checkpoint
from verify.checkpoint.files import check_checkpoint


def layout_of(tmp_path: Path, checkpoint: Path) -> Layout:
    return Layout(load_pipeline(write_pipeline(tmp_path, {"caption": checkpoint})))


def manifest(weights_sha256: str) -> Any:
    """What is read of a task manifest before a checkpoint is loaded."""
    checkpoint = SimpleNamespace(revision=None, weights_sha256=weights_sha256)
    return SimpleNamespace(task="caption", checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (None, ""),
        ("added", "text_decoder.bert.encoder.layer.0.attention.self.query.lora_A.default.weight"),
        ("removed", "vision_model.post_layernorm.bias"),
    ],
)
def test_weights_that_huggingface_leaves_out_or_makes_up(
    tmp_path: Path, change: str | None, named: str
) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "caption")
    path = folder / "model.safetensors"
    weights = load_file(path)
    if change == "added":
        weights[named] = weights["vision_model.post_layernorm.bias"].clone()
    elif change == "removed":
        del weights[named]
    save_file(weights, path, metadata={"format": "pt"})
    layout = layout_of(tmp_path, folder)
    if change is None:
        Checkpoint(layout, "caption", None)
        return
    with pytest.raises(InputError, match="HuggingFace does not load") as refused:
        Checkpoint(layout, "caption", None)
    assert named in str(refused.value)


def test_other_weights_than_those_exported(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "caption")
    with pytest.raises(InputError, match="not the weights that caption was exported from"):
        check_checkpoint(layout_of(tmp_path, folder), "caption", manifest("0" * 64))
