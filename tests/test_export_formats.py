"""The same weights in any format are the same checkpoint; converted once, without running code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import export.conversion
from configs.layout import Layout
from configs.load import load_pipeline
from export.__main__ import application
from export.checkpoint import CheckpointFiles, find, inspect
from export.model import load_model
from export.pipeline import plan
from pipeline.checkpoint.stored import model_folder, weights_sha256
from pipeline.command import select
from tests.export_checkpoints import Sizes, make_checkpoint, make_model, write_pipeline

ROOT = Path(__file__).resolve().parent.parent
ALIAS = "text_decoder.cls.predictions.decoder"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("original") / "checkpoint", "caption")


def stored_state(folder: Path) -> dict[str, Any]:
    """Every name that old files hold: tied weights twice, and position_ids."""
    state = load_file(folder / "model.safetensors")
    state[f"{ALIAS}.weight"] = state["text_decoder.bert.embeddings.word_embeddings.weight"]
    state[f"{ALIAS}.bias"] = state["text_decoder.cls.predictions.bias"]
    state["text_decoder.bert.embeddings.position_ids"] = torch.arange(40)[None]
    return state


def original_names(state: dict[str, Any]) -> dict[str, Any]:
    """Names of the original code, replaced in the opposite direction and order of the product."""
    pairs = (
        (r"^vision_model\.", "visual_encoder."),
        (r"\.embeddings\.class_embedding$", ".cls_token"),
        (r"^visual_encoder\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
        (r"\.embeddings\.patch_embedding\.", ".patch_embed.proj."),
        (r"^visual_encoder\.encoder\.layers\.", "visual_encoder.blocks."),
        (r"\.self_attn\.qkv\.", ".attn.qkv."),
        (r"\.self_attn\.projection\.", ".attn.proj."),
        (r"\.layer_norm([12])\.", r".norm\1."),
        (r"\.post_layernorm\.", ".norm."),
    )
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def write_shards(folder: Path, state: dict[str, Any], stem: str, ending: str) -> None:
    names, mapping = list(state), {}
    for number in range(3):
        part = {name: state[name].clone() for name in names[number::3]}
        file = f"{stem}-{number + 1:05d}-of-00003.{ending}"
        torch.save(part, folder / file) if ending == "bin" else save_file(part, folder / file)
        mapping |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": mapping}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


def as_layout(layout: str, source: Path, folder: Path) -> Path:
    """A copy of a checkpoint in another format; returns what a pipeline file names."""
    shutil.copytree(source, folder)
    if layout == "safetensors":
        return folder
    state = stored_state(source)
    (folder / "model.safetensors").unlink()
    if layout == "safetensors shards":
        write_shards(folder, state, "model", "safetensors")
    elif layout == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif layout == "old bin":
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif layout == "bin shards":
        write_shards(folder, state, "pytorch_model", "bin")
    else:
        torch.save({"model": original_names(state)}, folder / "model_base.pth")
        return folder / "model_base.pth"
    return folder


def inspected(tmp_path: Path, checkpoint: Path, task: str = "caption") -> CheckpointFiles:
    layout = Layout(load_pipeline(write_pipeline(tmp_path, {task: checkpoint})))
    name: Any = task
    return inspect(find(name, layout.pipeline.tasks[name]), layout.converted)


def keys(tmp_path: Path, checkpoint: Path) -> dict[str, Any]:
    selection = select(write_pipeline(tmp_path, {"caption": checkpoint}))
    (task,) = plan(selection)
    return {item.component: item.key_inputs for item in task.items}


LAYOUTS = ("safetensors shards", "bin", "old bin", "bin shards", "pth")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_weights_same_keys(tmp_path: Path, original: Path, layout: str) -> None:
    checkpoint = as_layout(layout, original, tmp_path / "checkpoint")
    assert keys(tmp_path, checkpoint) == keys(tmp_path, original)
    files = inspected(tmp_path, checkpoint)
    assert files.identity.weights_sha256 == inspected(tmp_path, original).identity.weights_sha256
    mine, theirs = load_model(files), load_model(inspected(tmp_path, original))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[name], tensor), name
    # What verify compares with: the folder that HuggingFace loads, and the same identity.
    pipeline = Layout(load_pipeline(write_pipeline(tmp_path, {"caption": checkpoint})))
    assert weights_sha256(pipeline, "caption", None) == files.identity.weights_sha256
    reference = type(theirs).from_pretrained(model_folder(pipeline, "caption", None))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(reference.state_dict()[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path: Path, original: Path, dtype: torch.dtype) -> None:
    found = set()
    for name in ("safetensors", "bin"):
        folder = tmp_path / name
        shutil.copytree(original, folder)
        state = {n: t.to(dtype) for n, t in load_file(original / "model.safetensors").items()}
        (folder / "model.safetensors").unlink()
        if name == "bin":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            save_file(state, folder / "model.safetensors")
        files = inspected(tmp_path, folder)
        found.add(files.identity.weights_sha256)
        assert next(load_model(files).parameters()).dtype == torch.float32
    assert len(found) == 1


def test_one_changed_number_is_another_checkpoint(tmp_path: Path, original: Path) -> None:
    state = stored_state(original)
    state["vision_model.post_layernorm.bias"][3] += 1e-6
    folder = tmp_path / "checkpoint"
    shutil.copytree(original, folder)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    mine = inspected(tmp_path, folder).identity.weights_sha256
    assert mine != inspected(tmp_path, original).identity.weights_sha256


@pytest.mark.parametrize("layout", ["bin", "pth"])
def test_converted_once(
    tmp_path: Path, original: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = as_layout(layout, original, tmp_path / "checkpoint")
    first = inspected(tmp_path, checkpoint)

    def again(*_: Any) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(export.conversion, "convert_pickles", again)
    monkeypatch.setattr(export.conversion, "convert_original", again)
    assert inspected(tmp_path, checkpoint) == first


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "contents", "config"])
def test_damaged_conversion_is_made_anew(tmp_path: Path, original: Path, damage: str) -> None:
    checkpoint = as_layout("pth", original, tmp_path / "checkpoint")
    first = inspected(tmp_path, checkpoint)
    path = first.weights / "model.safetensors"
    whole = path.read_bytes()
    if damage == "flip":
        content = bytearray(whole)
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        os.truncate(path, 1000)
    elif damage == "delete":
        path.unlink()
    elif damage == "contents":
        (first.weights / "contents.json").write_text("{")
    else:
        (first.weights / "config.json").write_text("{}")
    assert inspected(tmp_path, checkpoint) == first
    assert path.read_bytes() == whole
    assert (first.weights / "config.json").read_bytes() == (original / "config.json").read_bytes()


def test_unchanged_run_of_a_pickle_loads_no_torch(tmp_path: Path, original: Path) -> None:
    checkpoint = as_layout("bin", original, tmp_path / "checkpoint")
    config = write_pipeline(tmp_path, {"caption": checkpoint})
    assert CliRunner().invoke(application, ["--config", str(config)]).exit_code == 0
    code = (
        "import sys\n"
        "from export.__main__ import application\n"
        f"sys.argv = ['export', '--config', {str(config)!r}]\n"
        "try:\n    application()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "loaded = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "unchanged" in result.stderr


class _Planted:
    """Runs a command when an ordinary pickle of it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def refusal(tmp_path: Path, checkpoint: Path, task: str = "caption") -> str:
    config = write_pipeline(tmp_path, {task: checkpoint})
    result = CliRunner().invoke(application, ["--config", str(config)])
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert not list((tmp_path / "artifacts").rglob("*.safetensors"))
    return line


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, original: Path, name: str) -> None:
    checkpoint = as_layout("bin", original, tmp_path / "checkpoint")
    (checkpoint / "pytorch_model.bin").unlink()
    planted = tmp_path / "planted"
    torch.save({"model": _Planted(planted)}, checkpoint / name)
    line = refusal(tmp_path, checkpoint / name if name.endswith("pth") else checkpoint)
    assert "which could run code" in line
    assert not planted.exists()


def test_unreadable_pickles(tmp_path: Path, original: Path) -> None:
    checkpoint = as_layout("bin", original, tmp_path / "checkpoint")
    path = checkpoint / "pytorch_model.bin"
    os.truncate(path, path.stat().st_size // 2)
    assert "not a whole file of torch.save" in refusal(tmp_path, checkpoint)
    path.write_bytes(b"")
    assert "not a whole file of torch.save" in refusal(tmp_path, checkpoint)
    torch.save([torch.zeros(1)], path)
    assert "holds no table of weights" in refusal(tmp_path, checkpoint)
    torch.save({"state_dict": {"a": torch.zeros(1)}}, path)
    assert "state_dict: dict is no weight" in refusal(tmp_path, checkpoint)
    torch.save({"a": torch.zeros(1)}, checkpoint / "other.pth")
    assert "visual_encoder.pos_embed" in refusal(tmp_path, checkpoint / "other.pth")
    assert "no such checkpoint folder" in refusal(tmp_path, tmp_path / "none.pth")


#: heads of size 64 and BERT's vocabulary, as every model of the original code has
ORIGINAL = Sizes(
    image=32, patch=8, vision_width=64, vision_heads=1, text_width=64, text_heads=1, positions=512
)
TRAINING = {
    "visual_encoder_m.cls_token": (1, 1, 64),
    "text_encoder_m.embeddings.LayerNorm.weight": (64,),
    "vision_proj_m.weight": (12, 64),
    "image_queue": (12, 100),
    "ptr_queue": (1,),
    "idx_queue": (1, 100),
    "temp": (),
}


@pytest.mark.parametrize("task", ["caption", "vqa", "itm"])
def test_original_file_alone(tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a HuggingFace folder beside it, everything else follows from the original code."""
    monkeypatch.setattr("tests.export_checkpoints.pieces", lambda: [str(i) for i in range(30522)])
    model = make_model(task, ORIGINAL)
    state = original_names(model.state_dict())
    if task == "itm":
        state |= {name: torch.zeros(shape) for name, shape in TRAINING.items()}
    path = tmp_path / "files" / "model.pth"
    path.parent.mkdir()
    torch.save({"model": state, "epoch": 5}, path)
    files = inspected(tmp_path, path, task)
    loaded = load_model(files)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.config.vision_config.layer_norm_eps == 1e-6
    assert loaded.config.text_config.bos_token_id == 30522
    config = write_pipeline(tmp_path, {task: path})
    options = ["--config", str(config), "--component", "vision_encoder"]
    result = CliRunner().invoke(application, options)
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / f"artifacts/test/{task}/manifest.json").read_text())
    assert manifest["text"]["enc_token_id"] == 30523
    other = "vqa" if task == "caption" else "caption"
    assert f"use it for tasks.{task}" in refusal_of_task(tmp_path, path, other)


def refusal_of_task(tmp_path: Path, path: Path, task: str) -> str:
    config = write_pipeline(tmp_path, {task: path})
    result = CliRunner().invoke(application, ["--config", str(config)])
    assert result.exit_code == 2, result.output
    return result.stderr


def test_position_table_is_resized_as_transformers_does(tmp_path: Path, original: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(original, folder)
    state = original_names(load_file(folder / "model.safetensors"))
    small = state["visual_encoder.pos_embed"]
    wide = torch.randn(1, 1 + 6 * 6, small.shape[2], generator=torch.Generator().manual_seed(1))
    torch.save({"model": {**state, "visual_encoder.pos_embed": wide}}, folder / "wide.pth")
    table = load_model(inspected(tmp_path, folder / "wide.pth")).state_dict()
    resized = table["vision_model.embeddings.position_embedding"]
    embeddings = make_model("caption", Sizes(image=48)).vision_model.embeddings
    embeddings.position_embedding.data = wide
    expected = embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 4 * 4, 32), 32, 32)
    assert resized.shape == small.shape
    torch.testing.assert_close(resized, expected, rtol=0, atol=1e-6)
