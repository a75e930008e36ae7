"""Two pipeline files of one name are noticed before one builds over the other's artifacts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from configs.errors import ConfigError
from configs.layout import Layout
from pipeline.command import Selection, select
from pipeline.owner import OWNER_FILE, claim

ROOT = Path(__file__).resolve().parent.parent


def pipeline_file(path: Path, artifacts: Path, name: str = "mine") -> Selection:
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    path.write_text(yaml.safe_dump({**data, "name": name, "artifacts": str(artifacts)}))
    return select(path)


def test_another_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    claim(pipeline_file(tmp_path / "first.yaml", tmp_path))
    second = pipeline_file(tmp_path / "second.yaml", tmp_path)
    for keep in (True, False):
        with pytest.raises(ConfigError, match=r"second\.yaml: name: 'mine'.*first\.yaml.*FORCE=1"):
            claim(second, keep=keep)
    claim(pipeline_file(tmp_path / "second.yaml", tmp_path, name="other"))
    claim(pipeline_file(tmp_path / "second.yaml", tmp_path), force=True)
    with pytest.raises(ConfigError, match=r"first\.yaml: name.*second\.yaml"):
        claim(select(tmp_path / "first.yaml"))


def test_the_same_file_is_not_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "first.yaml"
    claim(pipeline_file(file, tmp_path))
    note = Layout(select(file).pipeline).root / OWNER_FILE
    written = note.stat().st_mtime_ns
    # Edited; reached through a link; named from another folder.
    file.write_text(file.read_text() + "# edited\n")
    claim(select(file))
    (tmp_path / "link.yaml").symlink_to(file)
    claim(select(tmp_path / "link.yaml"))
    monkeypatch.chdir(tmp_path)
    claim(select(Path("first.yaml")), force=True)
    assert note.stat().st_mtime_ns == written


def test_a_file_that_is_gone_or_renamed_owns_nothing(tmp_path: Path) -> None:
    claim(pipeline_file(tmp_path / "first.yaml", tmp_path))
    (tmp_path / "first.yaml").rename(tmp_path / "moved.yaml")
    claim(select(tmp_path / "moved.yaml"))
    pipeline_file(tmp_path / "moved.yaml", tmp_path, name="other")
    claim(pipeline_file(tmp_path / "third.yaml", tmp_path))


def test_a_copy_of_the_artifacts_belongs_to_the_file_that_names_it(tmp_path: Path) -> None:
    claim(pipeline_file(tmp_path / "first.yaml", tmp_path / "one"))
    os.renames(tmp_path / "one", tmp_path / "two")
    claim(pipeline_file(tmp_path / "second.yaml", tmp_path / "two"))


def test_a_dry_run_and_a_damaged_note(tmp_path: Path) -> None:
    selection = pipeline_file(tmp_path / "first.yaml", tmp_path)
    claim(selection, keep=False)
    note = Layout(selection.pipeline).root / OWNER_FILE
    assert not note.exists()
    note.parent.mkdir()
    note.write_text("{")
    claim(selection)
    claim(selection)
    assert "first.yaml" in note.read_text()
