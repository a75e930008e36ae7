"""Set-up of the TPU-MLIR environment: done once, says so, and notices what changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts import setup_tpu
from tests.test_scripts_setup_environment import locked, plain

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
    assert {plain(line) for line in listed.stdout.split()} <= locked(setup_tpu.LOCK)


def test_the_content_of_the_lock_decides_not_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / setup_tpu.LOCK.name
    copy.write_bytes(setup_tpu.LOCK.read_bytes())
    monkeypatch.setattr(setup_tpu, "LOCK", copy)
    os.utime(copy, (1, 1))
    assert setup_tpu.is_current(setup_tpu.ENVIRONMENT)
    copy.write_text(copy.read_text() + "# one more line\n")
    assert not setup_tpu.is_current(setup_tpu.ENVIRONMENT)


def test_a_moved_environment_is_not_current(tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    for place in ("bin", "lib"):
        (moved / place).parent.mkdir(exist_ok=True)
        (moved / place).symlink_to(setup_tpu.ENVIRONMENT.resolve() / place)
    (moved / setup_tpu.STAMP_NAME).write_bytes(
        (setup_tpu.ENVIRONMENT / setup_tpu.STAMP_NAME).read_bytes()
    )
    assert not setup_tpu.is_current(moved)


@pytest.mark.parametrize(
    ("targets", "chips"),
    [
        (None, True),
        ("openvino", False),
        ("openvino,openvino_npu", False),
        ("openvino, bm1688", True),
        ("bm9999", False),
    ],
)
def test_only_chips_need_it(targets: str | None, chips: bool) -> None:
    assert setup_tpu.needed(REPOSITORY / "configs" / "reference.yaml", targets) is chips


def test_a_pipeline_without_chips_sets_nothing_up(tmp_path: Path) -> None:
    data = yaml.safe_load((REPOSITORY / "configs" / "reference.yaml").read_text())
    data["targets"] = {"openvino": data["targets"]["openvino"]}
    config = tmp_path / "intel.yaml"
    config.write_text(yaml.safe_dump(data))
    assert not setup_tpu.needed(config, None)
    # The stage that reads the file says what is wrong with it.
    config.write_text("tasks: [")
    assert not setup_tpu.needed(config, None)


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
