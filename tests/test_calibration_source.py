"""Integers of real pictures' checkpoints are not calibrated on drawn scenes without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compile.backend import Job
from compile.calibration.given import GivenFiles
from configs.errors import ConfigError
from configs.layout import Layout
from configs.load import load_pipeline, load_target
from configs.schema import CalibrationConfig, Task

ROOT = Path(__file__).resolve().parent.parent
HUB = "Salesforce/blip-vqa-base"
ENCODER = "calibration.source: {task}/vision_encoder bm1688 int8 is calibrated on drawn scenes"


def job(task: Task, checkpoint: str, tables: str | None = None, **calibration: Any) -> Job:
    pipeline = load_pipeline(ROOT / "configs" / "reference.yaml")
    one = pipeline.tasks[task].model_copy(update={"checkpoint": checkpoint})
    chip = pipeline.targets["bm1688"].model_copy(
        update={"precisions": ("int8",), "quantize_tables": tables}
    )
    changes = {
        "tasks": {task: one},
        "targets": {"bm1688": chip},
        "calibration": CalibrationConfig(**calibration),
    }
    layout = Layout(pipeline.model_copy(update=changes))
    return Job(layout, task, "vision_encoder", load_target("bm1688"), "int8")


def said(one: Job, capsys: pytest.CaptureFixture[str]) -> str:
    given = GivenFiles()
    given.check_tables(one, "int8")
    given.check_data(one, one.task, keep=False)
    return " ".join(capsys.readouterr().err.split())


def test_shipped_checkpoints_are_calibrated_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    tables = "configs/quantize-tables"
    assert said(job("vqa", "models/checkpoints/reference-vqa", tables), capsys) == ""


def test_a_local_checkpoint_is_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(job("vqa", str(tmp_path)), capsys)
    assert text.startswith("warning: " + ENCODER.format(task="vqa"))
    assert "name a folder of pictures" in text


def test_a_hub_checkpoint_is_refused_unless_scenes_are_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ConfigError) as caught:
        said(job("vqa", HUB, samples=8), capsys)
    assert str(caught.value).startswith(ENCODER.format(task="vqa"))
    assert str(caught.value).endswith("or write scenes to have it so")
    assert said(job("vqa", HUB, source="scenes"), capsys).startswith("warning: calibration.source")


def test_tables_of_the_shipped_checkpoints_are_announced_for_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = said(job("vqa", HUB, "configs/quantize-tables", source="scenes"), capsys)
    assert "warning: targets.bm1688.quantize_tables: configs/quantize-tables was found on" in text
    assert f"not on {HUB}; remove it to search" in text
