"""An artifact that was compiled for other settings is refused, and the advice cures it."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import InputError
from pipeline.command import select
from pipeline.goals.options import Given, checked
from pipeline.goals.stages import commands
from tests.conftest import run_stage
from verify.artifacts import find_artifacts

ROOT = Path(__file__).resolve().parent.parent


def write_pipeline(folder: Path, task: str, target: str) -> Path:
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data["artifacts"] = str(folder)
    data["tasks"] = {task: data["tasks"][task]}
    data["targets"] = {target: {"precisions": ["f16"]}}
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def edit(config: Path, task: str, **shapes: int) -> None:
    data: dict[str, Any] = yaml.safe_load(config.read_text())
    data["tasks"][task]["shapes"].update(shapes)
    config.write_text(yaml.safe_dump(data))


def commands_of(advice: str) -> list[list[str]]:
    """What a make command would run of the pipeline's stages."""
    _, goal, *words = shlex.split(advice)
    values = dict(word.split("=", 1) for word in words)
    every = commands(goal, checked(goal, Given(values)))
    return [command for command in every if not command[0].startswith("pipeline.")]


@pytest.mark.parametrize("target", ["bm1684x", "openvino_npu"])
def test_another_text_length(exported_artifacts: Path, tmp_path: Path, target: str) -> None:
    ignored = shutil.ignore_patterns(".*.lock", "BM*", "openvino*")
    shutil.copytree(exported_artifacts / "caption", tmp_path / "reference/caption", ignore=ignored)
    config = write_pipeline(tmp_path, "caption", target)
    options = ("--config", str(config))
    assert run_stage("compile", *options).returncode == 0
    before = keys(config)

    edit(config, "caption", text_tokens=6)
    assert run_stage("export", *options).returncode == 0
    with pytest.raises(InputError, match=r"stale: settings\.shapes\.\w+\.\w+: 8, now 6") as caught:
        find_artifacts(select(config))
    assert caught.value.exit_code == 2
    (advice,) = re.findall(r"run: (make .*)", str(caught.value))
    found = commands_of(advice)
    assert [command[0] for command in found] == ["export", "compile"]
    for command in found:
        result = run_stage(*command)
        assert result.returncode == 0, result.stderr
    after = keys(config)
    assert before.keys() == after.keys()
    assert before["text_decoder"] != after["text_decoder"]


def keys(config: Path) -> dict[str, str]:
    """Keys of the one target's artifacts, which verification accepts."""
    (found,) = find_artifacts(select(config))
    (artifacts,) = found.targets
    return {name: manifest.key for name, manifest in artifacts.components.items()}


def test_a_chip_setting_of_the_pipeline_file(reference_artifacts: Path, tmp_path: Path) -> None:
    shutil.copytree(reference_artifacts / "vqa", tmp_path / "reference" / "vqa")
    config = write_pipeline(tmp_path, "vqa", "bm1684x")
    assert keys(config)
    data = yaml.safe_load(config.read_text())
    data["targets"]["bm1684x"]["attention_fusion"] = "recorded"
    config.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=r"attention_fusion: required, now recorded; run: make"):
        find_artifacts(select(config))
