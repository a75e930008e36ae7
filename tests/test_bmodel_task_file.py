"""All nets of a task in one BModel: the same answers, one load, and never an outdated file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from compile.bmodel.task_file import TaskFile
from configs.layout import Layout
from configs.load import load_pipeline, load_target
from pipeline.tpu_tools.process import VendorTools
from runtime.errors import ArtifactError
from runtime.files.manifests import component_manifests
from runtime.files.task_file import in_one_file
from runtime.sessions.opening import open_session
from runtime.sessions.session import SessionOptions
from runtime.tasks.artifacts import Artifacts

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = SessionOptions(device="simulator")


@pytest.fixture
def matching(reference_artifacts: Path, tmp_path: Path) -> Path:
    """A copy of the matching task for BM1688."""
    source = reference_artifacts / "itm"
    shutil.copytree(source / "BM1688", tmp_path / "itm" / "BM1688")
    shutil.copytree(source / "processor", tmp_path / "itm" / "processor")
    shutil.copy(source / "manifest.json", tmp_path / "itm")
    return tmp_path / "itm"


def feeds(session) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        spec.name: generator.standard_normal(spec.shape).astype(np.float32)
        for spec in session.inputs
    }


def test_nets_answer_the_same_from_the_task_file_alone(matching: Path) -> None:
    own = {}
    for manifest in component_manifests(matching):
        with open_session(manifest, OPTIONS) as session:
            own[manifest.component] = session.run(feeds(session))
    for path in matching.glob("BM1688/itm_*_bm1688_f16_1b.bmodel"):
        path.unlink()
    opened = Artifacts.open(matching, "itm", target="bm1688", options=OPTIONS)
    try:
        files = set()
        for component, expected in own.items():
            session = opened.session(component)
            files |= {net.file for net in session.manifest.nets}
            for name, array in session.run(feeds(session)).items():
                np.testing.assert_array_equal(array, expected[name])
        assert files == {"itm_bm1688_f16_1b.bmodel"}
    finally:
        opened.close()


def test_equal_weights_are_stored_once(reference_artifacts: Path) -> None:
    for task in ("caption", "vqa", "itm"):
        for chip in ("BM1684X", "BM1688"):
            folder = reference_artifacts / task / chip
            description = json.loads(next(folder.glob("*.combined.json")).read_text())
            ((name, record),) = description["files"].items()
            parts = (
                sum(path.stat().st_size for path in folder.glob("*.bmodel"))
                - (folder / name).stat().st_size
            )
            assert record["size_bytes"] < parts
            assert description["device_memory_bytes"] > 0


def test_a_file_made_from_other_artifacts_is_not_taken(matching: Path) -> None:
    chosen = list(component_manifests(matching))
    assert {net.file for item in in_one_file(chosen) for net in item.nets} == {
        "itm_bm1688_f16_1b.bmodel"
    }
    path = next(matching.glob("BM1688/*.combined.json"))
    data = json.loads(path.read_text())
    data["components"]["text_encoder"] = "0" * 64
    path.write_text(json.dumps(data))
    assert in_one_file(chosen) == chosen


@pytest.mark.parametrize("damage", ["{", '{"schema_version": 1}', "[]"])
def test_a_damaged_description_is_refused(matching: Path, damage: str) -> None:
    next(matching.glob("BM1688/*.combined.json")).write_text(damage)
    with pytest.raises(ArtifactError, match=r"combined\.json: damaged"):
        in_one_file(list(component_manifests(matching)))


def test_a_name_outside_of_the_folder_is_refused(matching: Path) -> None:
    path = next(matching.glob("BM1688/*.combined.json"))
    data = json.loads(path.read_text())
    data["files"] = {"../../etc/passwd": next(iter(data["files"].values()))}
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="leaves the artifact's folder"):
        in_one_file(list(component_manifests(matching)))


def test_it_is_rebuilt_only_when_something_changed(reference_artifacts: Path) -> None:
    pipeline = load_pipeline(ROOT / "configs" / "reference.yaml")
    layout = Layout(pipeline)
    assert layout.root == reference_artifacts
    one = TaskFile(layout, "itm", load_target("bm1688"), "f16")
    assert one.build(VendorTools()) is None
    file = one.location.file(".bmodel")
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1])
        assert one.build(VendorTools()) == len(content)
        assert file.stat().st_size == len(content)
    finally:
        if file.stat().st_size != len(content):
            file.write_bytes(content)
