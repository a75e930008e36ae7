"""The processor folder: what the runtime tokenises and preprocesses with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BlipImageProcessorPil

from export.pipeline import plan, run
from pipeline.command import select
from pipeline.manifest import TaskManifest, read_manifest
from tests.export_checkpoints import make_checkpoint, pieces, write_pipeline

TEXTS = ["a picture of", "How many RED circles are there?", "zebra", ""]


def export(folder: Path, checkpoint: Path) -> Path:
    selection = select(write_pipeline(folder, {"itm": checkpoint}))
    run(selection, plan(selection))
    return folder / "artifacts" / "test" / "itm"


@pytest.mark.parametrize("source", ["tokenizer.json", "vocab.txt", "vocab.txt alone"])
def test_tokenizer_is_the_checkpoints(tmp_path: Path, source: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "itm")
    expected = AutoTokenizer.from_pretrained(checkpoint)
    if source != "tokenizer.json":
        (checkpoint / "vocab.txt").write_text("\n".join(pieces()) + "\n")
        (checkpoint / "tokenizer.json").unlink()
    if source == "vocab.txt alone":
        (checkpoint / "tokenizer_config.json").unlink()
    folder = export(tmp_path, checkpoint)
    tokenizer = Tokenizer.from_file(str(folder / "processor" / "tokenizer.json"))
    for text in TEXTS:
        assert tokenizer.encode(text).ids == expected(text).input_ids
    assert tokenizer.padding is None
    assert tokenizer.truncation is None
    manifest = read_manifest(TaskManifest, folder / "manifest.json")
    assert manifest.text.cls_token_id == expected.cls_token_id
    assert manifest.text.end_token_id == expected.sep_token_id
    assert manifest.text.start_token_id == len(pieces())
    # A plain BERT vocabulary does not name [ENC]; it follows [DEC], as in the original code.
    assert manifest.text.enc_token_id == len(pieces()) + 1
    assert manifest.text.vocabulary_size == len(pieces()) + 2
    assert manifest.text.lower_case


def test_image_settings_are_the_checkpoints(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "itm")
    path = checkpoint / "preprocessor_config.json"
    data = json.loads(path.read_text())
    data.update(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=2)
    path.write_text(json.dumps(data))
    folder = export(tmp_path, checkpoint)
    image = read_manifest(TaskManifest, folder / "manifest.json").image
    assert (image.height, image.width) == (32, 32)
    assert image.mean == (0.1, 0.2, 0.3)
    assert image.std == (0.4, 0.5, 0.6)
    assert image.resample == "bilinear"
    assert image.rescale_factor == pytest.approx(1 / 255)
    saved = BlipImageProcessorPil.from_pretrained(folder / "processor")
    assert tuple(saved.image_std) == image.std


def test_settings_of_a_whole_processor(tmp_path: Path) -> None:
    """transformers 5 nests image settings in processor_config.json."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "itm")
    path = checkpoint / "preprocessor_config.json"
    nested = {"image_processor": json.loads(path.read_text()), "processor_class": "BlipProcessor"}
    (checkpoint / "processor_config.json").write_text(json.dumps(nested))
    path.unlink()
    image = read_manifest(TaskManifest, export(tmp_path, checkpoint) / "manifest.json").image
    assert (image.height, image.width) == (32, 32)


def test_files_are_recorded(tmp_path: Path) -> None:
    folder = export(tmp_path, make_checkpoint(tmp_path / "checkpoint", "itm"))
    manifest = read_manifest(TaskManifest, folder / "manifest.json")
    found = {str(path.relative_to(folder)) for path in (folder / "processor").iterdir()}
    assert set(manifest.files) == found
    assert "processor/tokenizer.json" in found


def test_sharded_checkpoint_equals_whole(tmp_path: Path) -> None:
    """Shards or one file: the same weights have the same digest and give the same graphs."""
    whole = make_checkpoint(tmp_path / "whole", "itm")
    shards = make_checkpoint(tmp_path / "shards", "itm", max_shard_size="50KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    folders = [export(first, whole), export(second, shards)]
    manifests = [read_manifest(TaskManifest, folder / "manifest.json") for folder in folders]
    assert manifests[0].checkpoint.weights_sha256 == manifests[1].checkpoint.weights_sha256
    for path in (folders[0] / "onnx").glob("*.onnx"):
        assert path.read_bytes() == (folders[1] / "onnx" / path.name).read_bytes()
