"""An unchanged export does nothing; a change rebuilds exactly what depends on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import export.pipeline
from export.__main__ import application
from tests.export_checkpoints import make_checkpoint, write_pipeline

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of all tasks, exported."""
    folder = tmp_path_factory.mktemp("original")
    tasks = ("caption", "vqa", "itm")
    config = write_pipeline(folder, {t: make_checkpoint(folder / t, t) for t in tasks})
    assert export_run(config).exit_code == 0
    return folder


@pytest.fixture
def exported(original: Path, tmp_path: Path) -> Path:
    """A copy of them, with the checkpoints at the paths that were exported.

    Keys hold digests, not paths, so the copies stay valid.
    """
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    write_pipeline(tmp_path, {task: tmp_path / task for task in ("caption", "vqa", "itm")})
    assert export_run(tmp_path / "pipeline.yaml").exit_code == 0
    return tmp_path


def export_run(config: Path, *options: str) -> Any:
    return CliRunner().invoke(application, ["--config", str(config), *options])


def components(folder: Path) -> dict[str, int]:
    """Modification time of every exported file, by task and name."""
    root = folder / "artifacts" / "test"
    return {
        f"{path.parent.parent.name}/{path.stem}": path.stat().st_mtime_ns
        for path in root.rglob("*.onnx")
    }


def rebuilt(folder: Path, *options: str) -> set[str]:
    """Runs the export and returns which graphs were written anew."""
    before = components(folder)
    result = export_run(folder / "pipeline.yaml", *options)
    assert result.exit_code == 0, result.output
    after = components(folder)
    assert before.keys() <= after.keys()
    return {name for name in after if before.get(name) != after[name]}


def change_weight(folder: Path, task: str, name: str) -> None:
    path = folder / task / "model.safetensors"
    weights = load_file(path)
    weights[name] = weights[name] * 1.01
    save_file(weights, path, metadata={"format": "pt"})


def test_unchanged_does_nothing_and_says_so(exported: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (exported / "artifacts").rglob("*")}
    result = export_run(exported / "pipeline.yaml")
    assert "unchanged, 11 components are up to date" in result.stderr
    after = {path: path.stat().st_mtime_ns for path in (exported / "artifacts").rglob("*.*")}
    changed = [p for p in after if before.get(p) != after[p] and not p.name.endswith(".lock")]
    assert changed == []


def test_unchanged_run_loads_neither_torch_nor_transformers(exported: Path) -> None:
    code = (
        "import sys\n"
        "from export.__main__ import application\n"
        f"sys.argv = ['export', '--config', {str(exported / 'pipeline.yaml')!r}]\n"
        "try:\n    application()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "loaded = {'torch', 'transformers', 'onnx', 'PIL'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("task", "weight", "expected"),
    [
        # Reference inputs are real, so what lies upstream of a component decides its data too.
        (
            "caption",
            "vision_model.post_layernorm.weight",
            {"caption/vision_encoder", "caption/cross_key_values", "caption/text_decoder"},
        ),
        (
            "caption",
            "text_decoder.cls.predictions.transform.dense.weight",
            {"caption/text_decoder"},
        ),
        (
            "vqa",
            "text_decoder.bert.encoder.layer.0.crossattention.self.key.weight",
            {"vqa/cross_key_values", "vqa/text_decoder"},
        ),
        (
            "vqa",
            "text_encoder.embeddings.word_embeddings.weight",
            {"vqa/text_encoder", "vqa/cross_key_values", "vqa/text_decoder"},
        ),
        ("itm", "itm_head.weight", {"itm/text_encoder"}),
        ("itm", "text_proj.weight", {"itm/text_encoder_unimodal"}),
        ("itm", "vision_proj.bias", {"itm/vision_projection"}),
    ],
)
def test_one_weight(exported: Path, task: str, weight: str, expected: set[str]) -> None:
    change_weight(exported, task, weight)
    assert rebuilt(exported) == expected
    assert rebuilt(exported) == set()
    root = exported / "artifacts" / "test" / task
    digest = json.loads((root / "manifest.json").read_text())["checkpoint"]["weights_sha256"]
    for path in (root / "onnx").glob("*.manifest.json"):
        assert json.loads(path.read_text())["checkpoint"]["weights_sha256"] == digest


def test_static_shapes_change_the_task_manifest_only(exported: Path) -> None:
    path = exported / "pipeline.yaml"
    data = yaml.safe_load(path.read_text())
    data["tasks"]["caption"]["shapes"]["past_tokens"] = 25
    path.write_text(yaml.safe_dump(data))
    manifest = exported / "artifacts" / "test" / "caption" / "manifest.json"
    assert rebuilt(exported) == set()
    assert json.loads(manifest.read_text())["shapes"]["past_tokens"] == 25


def test_question_start_changes_the_task_manifest_only(exported: Path) -> None:
    path = exported / "pipeline.yaml"
    data = yaml.safe_load(path.read_text())
    data["tasks"]["vqa"]["question_start"] = "enc"
    path.write_text(yaml.safe_dump(data))
    assert rebuilt(exported) == set()
    manifest = exported / "artifacts" / "test" / "vqa" / "manifest.json"
    assert json.loads(manifest.read_text())["text"]["question_start"] == "enc"


def test_tokenizer(exported: Path) -> None:
    path = exported / "itm" / "tokenizer_config.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "model_max_length": 300}))
    assert rebuilt(exported) == {"itm/text_encoder", "itm/text_encoder_unimodal"}


def test_tool_version(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = set(components(exported))
    versions = export.pipeline.tool_versions

    def newer(*names: str) -> dict[str, str]:
        return {**versions(*names), "torch": "999"}

    monkeypatch.setattr(export.pipeline, "tool_versions", newer)
    assert rebuilt(exported) == everything


def test_own_source(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = set(components(exported))
    monkeypatch.setattr(export.pipeline, "source_digest", lambda *_roots, **_chosen: "changed")
    assert rebuilt(exported) == everything


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip", "manifest", "garble"])
def test_damaged_artifact_is_built_again(exported: Path, damage: str) -> None:
    folder = exported / "artifacts" / "test" / "itm" / "onnx"
    path = folder / "text_encoder.onnx"
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        os.truncate(path, 100)
    elif damage == "flip":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "manifest":
        (folder / "text_encoder.manifest.json").unlink()
    else:
        (folder / "text_encoder.manifest.json").write_text("{")
    assert rebuilt(exported) == {"itm/text_encoder"}


def test_selection_and_force(exported: Path) -> None:
    options = ("--task", "itm,vqa", "--component", "vision_encoder", "--force")
    assert rebuilt(exported, *options) == {"itm/vision_encoder", "vqa/vision_encoder"}


def test_damaged_processor_file_is_written_again(exported: Path) -> None:
    path = exported / "artifacts" / "test" / "caption" / "processor" / "tokenizer.json"
    before = path.read_bytes()
    path.write_text("{}")
    assert rebuilt(exported) == set()
    assert path.read_bytes() == before


def test_dry_run_prints_the_plan_and_does_nothing(exported: Path) -> None:
    change_weight(exported, "itm", "itm_head.weight")
    before = components(exported)
    result = export_run(exported / "pipeline.yaml", "--dry-run")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert sum(line.split()[1] == "build" for line in lines) == 2
    (line,) = [line for line in lines if line.endswith("text_encoder.onnx") and "itm" in line]
    assert line.split()[:2] == ["#", "build"]
    assert components(exported) == before


def test_killed_export_leaves_nothing_that_passes_for_finished(exported: Path) -> None:
    """Kills runs at several moments; what a manifest describes is always whole."""
    config = exported / "pipeline.yaml"
    arguments = [sys.executable, "-m", "export", "--config", str(config), "--force"]
    for delay_s in (2.0, 5.0, 8.0):
        process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL)
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = export_run(config)
    assert result.exit_code == 0
    assert set(components(exported)) == {
        f"{path.parent.parent.name}/{path.name.removesuffix('.manifest.json')}"
        for path in (exported / "artifacts").rglob("onnx/*.manifest.json")
    }
    assert "unchanged" in export_run(config).stderr
