"""``info`` on what a board gets: a task's combined file, without the nets' own files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from runtime.__main__ import main
from runtime.files.manifests import CombinedManifest, component_manifests, read_manifest

CHIPS = ["bm1684x", "bm1688"]


def board_layout(source: Path, chip: str, destination: Path) -> Path:
    """What docs/boards.md ("One file") says a board needs."""
    folder = destination / source.name
    shutil.copytree(source / "processor", folder / "processor")
    shutil.copy2(source / "manifest.json", folder)
    (folder / chip).mkdir()
    combined = {path.name.split(".")[0] for path in (source / chip).glob("*.combined.json")}
    for path in (source / chip).iterdir():
        if path.suffix in (".json", ".npy") or path.stem in combined:
            shutil.copy2(path, folder / chip)
    return folder


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("task", ["caption", "itm"])
def test_the_combined_file_is_enough(
    reference_artifacts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    task: str,
    chip: str,
):
    source = reference_artifacts / task
    folder = board_layout(source, chip.upper(), tmp_path)
    (description,) = (folder / chip.upper()).glob("*.combined.json")
    combined = read_manifest(CombinedManifest, description)
    assert [p.name for p in (folder / chip.upper()).glob("*.bmodel")] == [combined.file]
    assert main(["info", str(folder), "--verify-digest"]) == 0
    printed = capsys.readouterr().out
    # One file and one heap, however many components are in it.
    assert combined.device_memory_bytes is not None
    needed_mib = -(-combined.device_memory_bytes // (1 << 20))
    (found,) = re.findall(r"needs (\d+) MiB of NPU heap", printed)
    # The file, and beside it the tensors that the runtime allocates.
    assert needed_mib <= int(found) < 2 * needed_mib
    files = [p for p in (folder / chip.upper()).iterdir() if p.suffix != ".json"]
    size_mib = sum(path.stat().st_size for path in files) / (1 << 20)
    assert f"{chip} f16: {size_mib:.1f} MiB of files" in printed
    # The same as where the nets' own files are there as well: the runtime takes the combined one.
    assert main(["info", str(folder), "--target", chip, "--json"]) == 0
    alone = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main(["info", str(source), "--target", chip, "--json"]) == 0
    beside = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert alone == beside
    names = {item.component for item in component_manifests(folder)}
    assert {record["component"] for record in alone} == names


def test_without_the_combined_file_it_says_what_is_missing(
    reference_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = board_layout(reference_artifacts / "itm", "BM1688", tmp_path)
    for path in (folder / "BM1688").glob("*.combined.json"):
        path.unlink()
    assert main(["info", str(folder)]) == 2
    assert "missing (listed in" in capsys.readouterr().err
