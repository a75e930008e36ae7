"""Adapters: merged where peft is installed, and never ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BlipForConditionalGeneration
from typer.testing import CliRunner

from configs.layout import Layout
from configs.load import load_pipeline
from export.__main__ import application
from export.checkpoint import CheckpointFiles, find, inspect
from pipeline.checkpoint.stored import model_folder, weights_sha256
from tests.export_checkpoints import make_checkpoint, write_pipeline

QUERY = "text_decoder.bert.encoder.layer.1.attention.self.query"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "base", "caption")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    """What peft saves of a LoRA on one matrix, as if trained."""
    torch.manual_seed(0)
    model = BlipForConditionalGeneration.from_pretrained(base)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=[QUERY], init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def layout_of(tmp_path: Path, checkpoint: Path) -> Layout:
    return Layout(load_pipeline(write_pipeline(tmp_path, {"caption": checkpoint})))


def inspected(tmp_path: Path, checkpoint: Path) -> CheckpointFiles:
    layout = layout_of(tmp_path, checkpoint)
    return inspect(find("caption", layout.pipeline.tasks["caption"]), layout.converted)


def test_merged_into_its_base(tmp_path: Path, base: Path, adapter: Path) -> None:
    files = inspected(tmp_path, adapter)
    plain = load_file(base / "model.safetensors")
    merged = load_file(files.weights / "model.safetensors")
    low = load_file(adapter / "adapter_model.safetensors")
    a, b = (low[f"base_model.model.{QUERY}.lora_{part}.weight"] for part in "AB")
    torch.testing.assert_close(merged[f"{QUERY}.weight"], plain[f"{QUERY}.weight"] + 2 * b @ a)
    changed = [name for name in plain if not torch.equal(plain[name], merged[name])]
    assert changed == [f"{QUERY}.weight"]
    config = write_pipeline(tmp_path, {"caption": adapter})
    result = CliRunner().invoke(application, ["--config", str(config)])
    assert result.exit_code == 0, result.output
    layout = layout_of(tmp_path, adapter)
    assert model_folder(layout, "caption", None) == files.weights
    assert weights_sha256(layout, "caption", None) == files.identity.weights_sha256


def test_another_base_is_another_checkpoint(tmp_path: Path, base: Path, adapter: Path) -> None:
    first = inspected(tmp_path, adapter).identity.weights_sha256
    assert inspected(tmp_path, adapter).identity.weights_sha256 == first
    weights = load_file(base / "model.safetensors")
    weights["vision_model.post_layernorm.bias"] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    assert inspected(tmp_path, adapter).identity.weights_sha256 != first


def refusal(tmp_path: Path, checkpoint: Path) -> str:
    config = write_pipeline(tmp_path, {"caption": checkpoint})
    result = CliRunner().invoke(application, ["--config", str(config)])
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    return line


def test_without_peft_the_message_says_how(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.checkpoint.find_spec", lambda _: None)
    line = refusal(tmp_path, adapter)
    assert "pip install peft" in line
    assert "merge_and_unload().save_pretrained(folder)" in line


def test_adapters_that_cannot_be_merged(tmp_path: Path, adapter: Path) -> None:
    name = f"base_model.model.{QUERY}.lora_A.weight"
    weights = load_file(adapter / "adapter_model.safetensors")
    path = adapter / "adapter_model.safetensors"
    save_file({name: weights[name]}, path)
    assert f"{QUERY}.lora_B.weight is not in it" in refusal(tmp_path, adapter)
    save_file({**weights, name.replace("layer.1", "layer.9"): torch.ones(4, 32)}, path)
    assert "lora_A.weight is not in the model" in refusal(tmp_path, adapter)
    save_file({**weights, name: torch.zeros(4, 7)}, path)
    assert "cannot be merged into" in refusal(tmp_path, adapter)
    write_settings(adapter, {"peft_type": "LORA"})
    assert "an adapter of an unnamed checkpoint" in refusal(tmp_path, adapter)
    write_settings(adapter, {"base_model_name_or_path": str(tmp_path / "none")})
    assert "no such checkpoint folder" in refusal(tmp_path, adapter)
