"""A finished build in a folder that cannot be written: an unchanged run succeeds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.schema import TASK_COMPONENTS
from tests.compile_private import PrivatePipeline, private_pipeline
from tests.conftest import ROOT

COMPONENT = "vision_projection"
#: The administrator may write everywhere, unless it gives that right away.
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
STAGES = {
    "export": ("--component", COMPONENT),
    "compile": ("--target", "openvino"),
    "verify": ("--component", COMPONENT, "--target", "openvino"),
    "verify report": (),
}


def run(pipeline: PrivatePipeline, stage: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *stage.split(), "--config", str(pipeline.config)]
    return subprocess.run(
        [*UNPRIVILEGED, *command, *STAGES[stage], *more],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=False,
    )


def allow(root: Path, *, writing: bool) -> None:
    for path in (root, *root.rglob("*")):
        right = 0o200 if writing else 0
        path.chmod((path.stat().st_mode & ~0o222) | right)


@pytest.fixture(scope="module")
def finished(exported_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> PrivatePipeline:
    folder = tmp_path_factory.mktemp("finished")
    pipeline = private_pipeline(exported_artifacts, folder, "itm", *TASK_COMPONENTS["itm"])
    shutil.copytree(exported_artifacts / "itm/processor", pipeline.root / "itm/processor")
    for stage in STAGES:
        result = run(pipeline, stage)
        assert result.returncode == 0, result.stderr
    return pipeline


@pytest.mark.parametrize("stage", STAGES)
def test_an_unchanged_run_needs_no_right_to_write(finished: PrivatePipeline, stage: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.root.rglob("*")}
    allow(finished.root, writing=False)
    try:
        result = run(finished, stage)
    finally:
        allow(finished.root, writing=True)
    assert result.returncode == 0, result.stderr
    assert "unchanged" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.root.rglob("*")} == before


@pytest.mark.parametrize("stage", STAGES)
def test_anything_else_is_one_line(finished: PrivatePipeline, stage: str) -> None:
    if stage == "verify":
        (finished.root / "verify-checks.jsonl").unlink()
    allow(finished.root, writing=False)
    try:
        result = run(finished, stage, *(() if stage == "verify" else ("--force",)))
    finally:
        allow(finished.root, writing=True)
    assert result.returncode == 1, result.stderr
    assert "cannot be written" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from pipeline.atomic import *\n"
        "os.umask(int(sys.argv[2], 8)); folder = Path(sys.argv[1])\n"
        "with artifact_lock(folder, 'net'), staging(folder, 'net') as made:\n"
        "    write_atomically(made / 'report.html', 'a picture')\n"
        "    made.rename(folder / 'made')\n"
    )
    for umask in (0o077, 0o002):
        folder = tmp_path / f"{umask:o}"
        subprocess.run(
            [sys.executable, "-c", program, str(folder), f"{umask:o}"], cwd=ROOT, check=True
        )
        paths = [folder, *folder.rglob("*")]
        assert {path.name for path in paths} >= {"made", "report.html"}
        for path in paths:
            wanted = 0o777 if path.is_dir() else 0o666
            assert path.stat().st_mode & 0o777 == wanted & ~umask, path


def test_who_waits_for_another_run_is_told(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from pipeline.atomic import artifact_lock\n"
        "with artifact_lock(Path(sys.argv[1]), 'net'):\n"
        "    print('held', flush=True); time.sleep(float(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen([*command, "60"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with subprocess.Popen(
            [*command, "0"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as waiting:
            assert waiting.stderr is not None
            words = waiting.stderr.readline()
            other.kill()
            assert waiting.communicate(timeout=60)[0] == "held\n"
    assert words.startswith("waiting for another run")
    assert f"works on {tmp_path}" in words
