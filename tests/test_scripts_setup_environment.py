"""Setting up .venv: locked by digests, current by content, and pip is tried again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.goals import stages
from pipeline.goals.stages import commands
from scripts import lock_requirements, setup_environment, setup_tpu

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(setup_environment, "LOG", tmp_path / "setup.log")
    monkeypatch.setattr(setup_tpu, "LOG", tmp_path / "setup_tpu.log")
    monkeypatch.setattr(setup_environment, "PAUSES_S", (1, 2))
    sleep = setup_environment.time.sleep
    monkeypatch.setattr("time.sleep", lambda s: slept.append(s) if s >= 1 else sleep(s))
    return slept


def failing(tmp_path: Path, times: int) -> list[str]:
    """A command that fails so many times and then succeeds."""
    counter = tmp_path / "counter"
    code = (
        f"import sys; from pathlib import Path; p = Path({str(counter)!r})\n"
        "n = int(p.read_text()) if p.exists() else 0; p.write_text(str(n + 1))\n"
        f"print('Collecting x'); print(f'ERROR: no index, attempt {{n}}'); sys.exit(n < {times})"
    )
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("times", "why"), [(0, None), (2, None), (3, "ERROR: no index, attempt 2")]
)
def test_an_index_that_is_away_for_a_moment(
    tmp_path: Path, pauses: list[float], times: int, why: str | None
) -> None:
    assert setup_environment.install(failing(tmp_path, times), "installing") == why
    assert pauses == [1, 2][: min(times, 2)]


def test_the_tools_environment_waits_as_well(tmp_path: Path, pauses: list[float]) -> None:
    setup_tpu._install(failing(tmp_path, 1), 3)
    assert pauses == [1]
    with pytest.raises(setup_tpu.ToolError, match="ERROR: no index, attempt 4"):
        setup_tpu._install(failing(tmp_path, 9), 3)


def test_the_reason_is_pips_own_line() -> None:
    assert setup_environment.reason("Collecting x\nERROR: No matching x\nhint: y\n") == (
        "ERROR: No matching x"
    )
    assert setup_environment.reason("") == "no output"


def plain(requirement: str) -> str:
    """A pin as every tool writes it."""
    name, _, version = requirement.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name.partition('[')[0]).lower()}=={version}"


def locked(lock: Path) -> set[str]:
    """The pins of a lock file, each of which names digests."""
    entries = [e for e in re.split(r"\n(?=\S)", lock.read_text()) if not e.startswith("#")]
    assert all("--hash=sha256:" in entry for entry in entries)
    return {plain(entry.split()[0]) for entry in entries}


@pytest.mark.parametrize(
    ("locks", "requirements"),
    [
        (
            (setup_environment.LOCK, setup_environment.CUDA_LOCK),
            ("pipeline.txt", "development.txt"),
        ),
        ((setup_tpu.LOCK,), ("tpu.txt",)),
    ],
)
def test_every_pinned_package_is_locked(
    locks: tuple[Path, ...], requirements: tuple[str, ...]
) -> None:
    lines = [
        line.strip()
        for name in requirements
        for line in (ROOT / "requirements" / name).read_text().splitlines()
        if "==" in line
    ]
    missing = {plain(line) for line in lines} - set[str]().union(*map(locked, locks))
    assert not missing, f"run: python -m scripts.lock_requirements ({missing})"


def test_what_cuda_needs_is_apart() -> None:
    cuda = locked(setup_environment.CUDA_LOCK)
    assert not any(lock_requirements._CUDA.match(pin) for pin in locked(setup_environment.LOCK))
    assert all(lock_requirements._CUDA.match(pin) for pin in cuda)
    # The same release, whichever build.
    (torch,) = locked(setup_environment.CPU_LOCK)
    assert torch.removesuffix("+cpu") in cuda


def test_without_a_cpu_build_torch_comes_with_cuda(
    environment: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = setup_environment.run_logged
    monkeypatch.setattr(
        setup_environment,
        "run_logged",
        lambda command, label: (
            run(command, label) or int(str(setup_environment.CPU_LOCK) in command)
        ),
    )
    assert setup_environment.main() == 0
    assert [c[c.index("-r") + 1] for c in environment if "-r" in c][1:] == [
        str(setup_environment.CPU_LOCK),
        str(setup_environment.CUDA_LOCK),
    ]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """An environment of no packages; what set-up would run instead of pip."""
    commands: list[list[str]] = []

    def run(arguments: list[str], label: str) -> int:  # noqa: ARG001
        commands.append(arguments)
        if arguments[1:3] == ["-m", "venv"]:
            python = Path(arguments[3], "bin", "python")
            python.parent.mkdir(parents=True)
            python.symlink_to(sys.executable)
        return 0

    monkeypatch.setattr(setup_environment, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(setup_environment, "LOG", setup_environment.ROOT / ".cache" / "t.log")
    monkeypatch.setattr(setup_environment, "run_logged", run)
    lock = Path(shutil.copy(setup_environment.LOCK, tmp_path))
    monkeypatch.setattr(setup_environment, "LOCK", lock)
    return commands


def test_set_up_takes_only_files_that_the_lock_names(environment: list[list[str]]) -> None:
    assert setup_environment.main() == 0
    _, packages, torch, own = environment
    for command, lock in (
        (packages, setup_environment.LOCK),
        (torch, setup_environment.CPU_LOCK),
    ):
        assert {"--require-hashes", "--no-deps", "--only-binary"} <= set(command)
        assert command[command.index("-r") + 1] == str(lock)
    assert {"--no-deps", "--no-build-isolation"} <= set(own)


def test_set_up_goes_by_content(environment: list[list[str]]) -> None:
    assert setup_environment.main() == 0
    done = len(environment)
    os.utime(setup_environment.LOCK)
    assert setup_environment.main() == 0
    assert len(environment) == done
    setup_environment.LOCK.write_text("# changed\n")
    assert setup_environment.main() == 0
    # The same environment, its packages brought up to date.
    assert len(environment) == done + 3


def test_a_moved_environment_is_made_anew(
    environment: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert setup_environment.main() == 0
    (tmp_path / ".venv").rename(tmp_path / "moved")
    monkeypatch.setattr(setup_environment, "ENVIRONMENT", tmp_path / "moved")
    assert setup_environment.main() == 0
    assert "moved was made elsewhere and moved: it is made anew" in capsys.readouterr().err
    assert [command[1:3] for command in environment].count(["-m", "venv"]) == 2


def make(folder: Path, *arguments: str) -> list[str]:
    """What make would run, with programs in the place of Python that say how they were called."""
    for name in ("path/python3", ".venv/bin/python"):
        program = folder / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f'#!/bin/sh\necho "{Path(name).name} $*" >> {folder}/calls\n')
        program.chmod(0o755)
    (folder / "calls").write_text("")
    shutil.copy(ROOT / "Makefile", folder)
    path = f"{folder / 'path'}:{os.environ['PATH']}"
    subprocess.run(
        ["/usr/bin/env", "make", *arguments],
        cwd=folder,
        env={"PATH": path, "HOME": str(folder)},
        check=True,
        capture_output=True,
    )
    return (folder / "calls").read_text().splitlines()


def test_make_asks_for_chips_tools_with_the_targets_that_are_built(tmp_path: Path) -> None:
    check, environment = "python3 -m pipeline --make check", "python3 scripts/setup_environment.py"
    calls = make(tmp_path, "setup", "TARGET=openvino")
    assert calls == [check, environment, "python3 -m pipeline --make setup"]
    values = {"CONFIG": "mine.yaml", "TARGET": "openvino"}
    (tools,) = commands("setup", values)
    assert tools == ["scripts.setup_tpu", "--config", "mine.yaml", "--target", "openvino"]
    assert make(tmp_path, "setup-tpu") == [check, environment, "python -m scripts.setup_tpu"]


@pytest.mark.parametrize("goal", ["all", "ir", "bmodel", "export"])
def test_a_dry_run_sets_nothing_up(tmp_path: Path, goal: str) -> None:
    calls = make(tmp_path, goal, "DRY_RUN=1")
    assert calls
    assert not any("setup" in call for call in calls)


def test_a_dry_run_without_an_environment_prints_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    assert stages.run("ir", {"CONFIG": "mine.yaml", "DRY_RUN": "1"}) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "make setup"
    assert printed[2:] == [
        ".venv/bin/python -m export --config mine.yaml",
        ".venv/bin/python -m compile --backend openvino --config mine.yaml --target openvino",
    ]
    assert list(tmp_path.iterdir()) == []
