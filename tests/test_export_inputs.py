"""Bad input: one line that names cause and cure, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from export.__main__ import application
from tests.export_checkpoints import Sizes, make_checkpoint, write_pipeline

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("good") / "checkpoint", "caption")


def export(config: Path, *options: str) -> Any:
    return CliRunner().invoke(application, ["--config", str(config), *options])


def nothing_written(folder: Path) -> bool:
    """But for the record of whose folder it is."""
    files = (path for path in (folder / "artifacts").rglob("*") if path.name != "pipeline.json")
    return not [path for path in files if path.suffix in (".onnx", ".json", ".npz")]


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def truncate(path: Path, size: int) -> None:
    os.truncate(path, size)


def drop_a_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["vision_model.post_layernorm.bias"]
    save_file(weights, path, metadata={"format": "pt"})


def poison_a_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["vision_model.post_layernorm.bias"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})


def change_weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """``change`` returns other weights, or changes them in place."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        weights = load_file(path)
        save_file(change(weights) or weights, path, metadata={"format": "pt"})

    return damage


def with_adapter(weights: dict[str, Any]) -> None:
    """As old peft leaves it: the base weights under their own names."""
    query = "text_decoder.bert.encoder.layer.0.attention.self.query"
    weights[f"{query}.lora_A.default.weight"] = weights[f"{query}.weight"][:4].clone()
    weights[f"{query}.lora_B.default.weight"] = weights[f"{query}.weight"][:, :4].clone()


def with_base_layer(weights: dict[str, Any]) -> None:
    """As new peft names it."""
    query = "text_decoder.bert.encoder.layer.0.attention.self.query"
    weights[f"{query}.base_layer.weight"] = weights.pop(f"{query}.weight")
    weights[f"{query}.lora_A.default.weight"] = weights[f"{query}.base_layer.weight"][:4].clone()


def with_second_encoder(weights: dict[str, Any]) -> dict[str, Any]:
    more = {f"question_adapter.{name}": tensor.clone() for name, tensor in weights.items()}
    return weights | more


def quantize_a_weight(weights: dict[str, Any]) -> None:
    name = "vision_model.post_layernorm.weight"
    weights[name] = weights[name].to(torch.int8)


def add_adapter_files(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")


def set_vision(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, lambda data: data["vision_config"].update(values))


def set_text(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, lambda data: data["text_config"].update(values))


def set_image(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing folder": (shutil.rmtree, "no such checkpoint folder"),
    "missing config": (lambda c: (c / "config.json").unlink(), "config.json: no such file"),
    "garbled config": (lambda c: (c / "config.json").write_text("{no"), "cannot be read as JSON"),
    "list as config": (lambda c: (c / "config.json").write_text("[1]"), "not a JSON object"),
    "missing weights": (
        lambda c: (c / "model.safetensors").unlink(),
        "neither model.safetensors nor pytorch_model.bin",
    ),
    "truncated weights": (lambda c: truncate(c / "model.safetensors", 20_000), "not a whole"),
    "empty weights": (lambda c: truncate(c / "model.safetensors", 0), "header too small"),
    "garbled weights": (
        lambda c: (c / "model.safetensors").write_bytes(os.urandom(5000)),
        "not a whole safetensors file",
    ),
    "garbled header": (
        lambda c: (c / "model.safetensors").write_bytes((9).to_bytes(8, "little") + b"{" * 99),
        "invalid JSON in header",
    ),
    "weights are a folder": (
        lambda c: ((c / "model.safetensors").unlink(), (c / "model.safetensors").mkdir()),
        "model.safetensors",
    ),
    "missing weight": (drop_a_weight, "1 weights are missing, among them vision_model.post_layer"),
    "weight not finite": (poison_a_weight, "holds values that are not finite"),
    "adapter beside its base": (change_weights(with_adapter), "merge_and_unload()"),
    "adapter around its base": (change_weights(with_base_layer), "merge_and_unload()"),
    "adapter files": (add_adapter_files, "merge_and_unload()"),
    "wrapper": (
        change_weights(lambda w: {f"module.{name}": tensor for name, tensor in w.items()}),
        "all names begin with module.",
    ),
    "second encoder": (
        change_weights(with_second_encoder),
        "the model has no question_adapter.",
    ),
    "integer weight": (change_weights(quantize_a_weight), "is of type I8"),
    "other file name": (
        lambda c: (c / "model.safetensors").rename(c / "model.fp16.safetensors"),
        "rename model.fp16.safetensors to model.safetensors",
    ),
    "fewer vision layers": (
        set_vision(num_hidden_layers=1),
        "vision_config.num_hidden_layers: 1 does not fit the weights: vision_model.encoder are 2",
    ),
    "fewer text layers": (set_text(num_hidden_layers=1), "text_config.num_hidden_layers: 1"),
    # A model of this size would not fit in memory.
    "ten million layers": (set_text(num_hidden_layers=10_000_000), "num_hidden_layers: 10000000"),
    "wide text": (set_text(hidden_size=2_000_000), "text_config.hidden_size: 2000000"),
    "other vocabulary": (set_text(vocab_size=10**9), "word_embeddings.weight is "),
    "other positions": (set_text(max_position_embeddings=64), "max_position_embeddings: 64"),
    "other image": (
        lambda c: (set_vision(image_size=64)(c), set_image(size={"height": 64, "width": 64})(c)),
        "vision_config.image_size: 64 does not fit the weights",
    ),
    "no return_dict": (
        lambda c: edit_config(c, lambda d: d.update(return_dict=False)),
        "return_dict: must not be false",
    ),
    "no architectures": (
        lambda c: edit_config(c, lambda d: d.pop("architectures")),
        'add "architectures": ["BlipForConditionalGeneration"]',
    ),
    "wrong architecture": (
        lambda c: edit_config(c, lambda d: d.update(architectures=["BlipForQuestionAnswering"])),
        "use it for tasks.vqa",
    ),
    "other model": (
        lambda c: edit_config(c, lambda d: d.update(architectures=["BertModel"])),
        "choose a BLIP checkpoint",
    ),
    "no architecture": (
        lambda c: edit_config(c, lambda d: (d.pop("architectures"), d.update(model_type="x"))),
        "model_type x",
    ),
    "image size": (set_vision(image_size=33), "33 is not a multiple of patch_size 8"),
    "image size list": (set_vision(image_size=[32, 32]), "not a positive whole number"),
    "image size text": (set_vision(image_size="big"), "not a valid BLIP configuration"),
    "zero patch": (set_vision(patch_size=0), "not a positive whole number"),
    "vision heads": (set_vision(num_attention_heads=5), "not a multiple of num_attention_heads"),
    "text heads": (set_text(num_attention_heads=5), "not a multiple of num_attention_heads"),
    "no cross-attention": (set_text(is_decoder=False), "is_decoder"),
    "separator": (set_text(sep_token_id=100000), "no id below"),
    "other width": (set_vision(hidden_size=64), "vision_config.hidden_size: 64 does not fit"),
    "small vocabulary": (set_text(vocab_size=50, bos_token_id=48), "text_config.vocab_size: 50"),
    "short positions": (set_text(max_position_embeddings=6), "exceeds the checkpoint's 6"),
    "short cache": (set_text(max_position_embeddings=20), "leaves no position for a new token"),
    "no image settings": (
        lambda c: (c / "preprocessor_config.json").unlink(),
        "preprocessor_config.json or processor_config.json is missing",
    ),
    "garbled image settings": (
        lambda c: (c / "preprocessor_config.json").write_text("{"),
        "image settings cannot be read",
    ),
    "other image size": (set_image(size={"height": 64, "width": 64}), "differs from"),
    "no resize": (set_image(do_resize=False), "do_resize must be true"),
    "no tokenizer": (
        lambda c: (c / "tokenizer.json").unlink(),
        "tokenizer.json or vocab.txt is missing",
    ),
    "garbled tokenizer": (
        lambda c: (c / "tokenizer.json").write_text("{}"),
        "tokenizer cannot be read",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoint(tmp_path: Path, checkpoint: Path, name: str) -> None:
    damage, message = BAD[name]
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    result = export(write_pipeline(tmp_path, {"caption": folder}))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.strip()]) == 1, result.stderr
    assert "Traceback" not in result.output
    assert nothing_written(tmp_path)


def test_every_task_is_checked_before_any_is_built(tmp_path: Path, checkpoint: Path) -> None:
    bad = make_checkpoint(tmp_path / "itm", "itm", Sizes())
    set_vision(image_size=33)(bad)
    result = export(write_pipeline(tmp_path, {"caption": checkpoint, "itm": bad}))
    assert result.exit_code == 2
    assert nothing_written(tmp_path)


def test_wide_vision_cannot_answer_questions(tmp_path: Path) -> None:
    sizes = Sizes(vision_width=48, vision_heads=3)
    folder = make_checkpoint(tmp_path / "vqa", "vqa", sizes)
    result = export(write_pipeline(tmp_path, {"vqa": folder}))
    assert result.exit_code == 2
    assert "HuggingFace cannot run it either" in result.stderr


def test_missing_shard(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", "caption", max_shard_size="50KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[0].unlink()
    result = export(write_pipeline(tmp_path, {"caption": folder}))
    assert result.exit_code == 2
    assert f"{shards[0].name}: no such file, but model.safetensors.index.json" in result.stderr


def test_encoder_start_that_the_checkpoint_lacks(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "vqa", "vqa")
    edit_config(folder, lambda data: data["text_config"].update(bos_token_id=5))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("[ENC]", "[XYZ]"))
    config = write_pipeline(tmp_path, {"vqa": folder}, vqa={"question_start": "enc"})
    result = export(config)
    assert result.exit_code == 2
    assert "question_start: enc: the checkpoint has no [ENC] token; use cls" in result.stderr
    assert nothing_written(tmp_path)


def test_revision_of_a_local_folder(tmp_path: Path, checkpoint: Path) -> None:
    config = write_pipeline(tmp_path, {"caption": checkpoint}, caption={"revision": "main"})
    result = export(config)
    assert result.exit_code == 2
    assert "revisions exist for hub ids only" in result.stderr


def run_module(config: Path, environment: dict[str, str], **options: Any) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "export", "--config", str(config)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        **options,
    )


def test_hub_id_without_network(tmp_path: Path) -> None:
    config = write_pipeline(tmp_path, {"caption": "nobody/no-such-checkpoint"})
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    result = run_module(config, environment)
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert "nobody/no-such-checkpoint: cannot be downloaded" in line
    assert "give the folder as checkpoint" in line


@pytest.mark.parametrize("pinned", [False, True])
def test_hub_id_from_the_cache(tmp_path: Path, checkpoint: Path, pinned: bool) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "hub" / "models--owner--name"
    shutil.copytree(checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    changes = {"caption": {"revision": commit}} if pinned else {}
    config = write_pipeline(tmp_path, {"caption": "owner/name"}, **changes)
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    result = run_module(config, environment)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "artifacts/test/caption/manifest.json").read_text())
    assert manifest["checkpoint"]["source"] == "owner/name"
    assert manifest["checkpoint"]["revision"] == commit


def test_full_disk(tmp_path: Path, checkpoint: Path) -> None:
    """A file-size limit fails writes in the middle of a file, as a full disk does."""
    config = write_pipeline(tmp_path, {"caption": checkpoint})

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    result = run_module(config, {}, preexec_fn=limit)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "check free space" in result.stderr
    left = [path.name for path in (tmp_path / "artifacts").rglob("*") if "building" in path.name]
    assert left == []
    assert not list((tmp_path / "artifacts").rglob("vision_encoder.*"))
    # With room again, the same command completes.
    assert run_module(config, {}).returncode == 0


def test_folder_that_cannot_be_written(tmp_path: Path, checkpoint: Path) -> None:
    config = write_pipeline(tmp_path, {"caption": checkpoint})
    (tmp_path / "artifacts").write_text("a file where a folder should be")
    result = export(config)
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
