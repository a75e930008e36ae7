"""A task's combined file is compared with the nets' own files, block by block."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from configs.errors import InputError
from pipeline.command import select
from pipeline.manifest import file_record
from verify.artifacts import TargetArtifacts, find_artifacts
from verify.parity.combined import BLOCK_BYTES, combined_check, combined_file
from verify.results import Subject

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def pipeline(reference_artifacts: Path, tmp_path: Path) -> Path:
    """One task on one chip, and a pipeline file."""
    for folder in ("onnx", "BM1684X", "processor"):
        shutil.copytree(
            reference_artifacts / "itm" / folder, tmp_path / "reference" / "itm" / folder
        )
    shutil.copy(reference_artifacts / "itm" / "manifest.json", tmp_path / "reference" / "itm")
    config = tmp_path / "pipeline.yaml"
    text = (ROOT / "configs" / "reference.yaml").read_text()
    config.write_text(f"{text}\nartifacts: {tmp_path}\n")
    return config


def artifacts(config: Path) -> TargetArtifacts:
    (task,) = find_artifacts(select(config, task="itm", target="bm1684x"))
    return task.targets[0]


def combined(config: Path) -> Path:
    (path,) = (config.parent / "reference" / "itm" / "BM1684X").glob("*.combined.json")
    return path


def problems(config: Path) -> tuple[str, ...]:
    subject = Subject("combined_file", "itm", None, "bm1684x", "f16", "file")
    return combined_check(subject, artifacts(config)).problems


def test_a_combined_file_holds_every_net(pipeline: Path) -> None:
    assert combined_file(artifacts(pipeline), "itm") is not None
    assert problems(pipeline) == ()


def test_a_stale_net_in_it_is_named(pipeline: Path) -> None:
    description = combined(pipeline)
    model = description.with_name(description.name.replace(".combined.json", ".bmodel"))
    (own,) = description.parent.glob("itm_vision_projection_*.bmodel")
    data = bytearray(model.read_bytes())
    block = own.read_bytes()[-2 * BLOCK_BYTES : -BLOCK_BYTES]
    place = data.find(block)
    assert place > 0
    data[place : place + 64] = bytes(64)
    model.write_bytes(bytes(data))
    with pytest.raises(InputError, match="is not the file that"):
        problems(pipeline)
    record = json.loads(description.read_text())
    record["files"] = {model.name: asdict(file_record(model))}
    description.write_text(json.dumps(record))
    (problem,) = problems(pipeline)
    assert problem.startswith("vision_projection: 1 of ")
