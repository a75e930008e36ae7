"""Set-up of the TPU-MLIR environment: done once, says so, and notices what changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import setup_tpu

REPOSITORY = Path(__file__).resolve().parent.parent


def run_setup(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.setup_tpu", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_a_second_run_does_nothing() -> None:
    assert run_setup().returncode == 0
    stamp = setup_tpu.ENVIRONMENT / setup_tpu.STAMP_NAME
    before = stamp.stat().st_mtime_ns
    again = run_setup()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert stamp.stat().st_mtime_ns == before


def test_the_environment_is_mended_and_its_tools_run() -> None:
    assert setup_tpu.is_current(setup_tpu.ENVIRONMENT)
    tool = setup_tpu.ENVIRONMENT / "bin" / "model_tool"
    done = subprocess.run([tool], capture_output=True, text=True)
    assert "--combine" in done.stdout + done.stderr


def test_every_installed_package_is_pinned() -> None:
    listed = subprocess.run(
        [setup_tpu.ENVIRONMENT / "bin" / "python", "-m", "pip", "freeze"],
        capture_output=True,
        text=True,
        check=True,
    )
    pinned = setup_tpu.CONSTRAINTS.read_text().splitlines()
    assert set(listed.stdout.split()) <= set(pinned)


@pytest.mark.parametrize("changed", ["REQUIREMENTS", "CONSTRAINTS"])
def test_a_changed_requirement_file_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    original = getattr(setup_tpu, changed)
    copy = tmp_path / original.name
    copy.write_bytes(original.read_bytes())
    monkeypatch.setattr(setup_tpu, changed, copy)
    assert setup_tpu.is_current(setup_tpu.ENVIRONMENT)
    copy.write_text(copy.read_text() + "# one more line\n")
    assert not setup_tpu.is_current(setup_tpu.ENVIRONMENT)


def test_a_missing_or_half_made_environment_is_not_current(tmp_path: Path) -> None:
    assert not setup_tpu.is_current(tmp_path / "none")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / setup_tpu.STAMP_NAME).write_text("{")
    assert not setup_tpu.is_current(tmp_path / "half")


def test_a_wrong_override_is_one_line_and_exit_code_2() -> None:
    done = run_setup(TPU_MLIR_PYTHON=sys.executable)
    assert done.returncode == 2
    assert done.stderr.startswith("error: TPU_MLIR_PYTHON=")
    assert len(done.stderr.splitlines()) == 1
    assert setup_tpu.is_current(setup_tpu.ENVIRONMENT)
