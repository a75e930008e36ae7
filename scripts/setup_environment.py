"""Creates .venv with the pinned requirements; standard library only, for it runs first."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
LOG = ROOT / ".cache" / "setup.log"
MINIMUM = (3, 11)
#: newest Python that every pinned wheel exists for
MAXIMUM = (3, 13)
SPINNER = "|/-\\"
#: Waits before pip is tried again, in seconds. pip takes what an index answers for the last word,
#: also while that index is away for a moment.
PAUSES_S = (10, 60, 120)


def version_of(python: str) -> tuple[int, int] | None:
    """The interpreter's (major, minor), or None when it does not run.

    Candidates are run, not trusted by name: a version manager's shim may exist and still fail.
    """
    code = "import sys, venv, ensurepip; print(sys.version_info[0], sys.version_info[1])"
    try:
        result = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
        major, minor = result.stdout.split()
        return (int(major), int(minor)) if result.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def find_python() -> str | None:
    """First working interpreter of $BLIP_EDGE_PYTHON, this one, and those on the PATH."""
    candidates = [os.environ.get("BLIP_EDGE_PYTHON"), sys.executable]
    candidates += [shutil.which(f"python3.{minor}") for minor in (11, 12, 13)]
    for candidate in candidates:
        version = version_of(candidate) if candidate else None
        if candidate and version and MINIMUM <= version <= MAXIMUM:
            return candidate
    return None


def run_logged(arguments: list[str], label: str) -> int:
    """Runs a command with its output in the log file and a spinner on the terminal."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("a", encoding="utf-8") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        started = time.monotonic()
        turn = 0
        while process.poll() is None:
            if sys.stderr.isatty():
                elapsed = int(time.monotonic() - started)
                sys.stderr.write(f"\r{SPINNER[turn % len(SPINNER)]} {label} {elapsed} s ")
                sys.stderr.flush()
                turn += 1
            time.sleep(0.2)
    elapsed = int(time.monotonic() - started)
    sys.stderr.write(f"{chr(13) if sys.stderr.isatty() else ''}{label}: {elapsed} s\n")
    return process.returncode


def reason(log: str) -> str:
    """The line of pip's output that says what went wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    found = [line for line in lines if line.startswith("ERROR:")]
    return (found or lines or ["no output"])[-1]


def with_pauses(attempt: Callable[[], str | None], say: Callable[[str], object]) -> str | None:
    """Runs pip, and again after a pause where it failed; returns why it failed at last."""
    for pause_s in PAUSES_S:
        why = attempt()
        if why is None:
            return None
        say(f"pip failed ({why}); trying again in {pause_s} s\n")
        time.sleep(pause_s)
    return attempt()


def install(arguments: list[str], label: str) -> str | None:
    """Runs pip until it succeeds or gives up; returns why."""

    def attempt() -> str | None:
        before = LOG.stat().st_size if LOG.exists() else 0
        if run_logged(arguments, label) == 0:
            return None
        with LOG.open("rb") as log:
            log.seek(before)
            return reason(log.read().decode(errors="replace"))

    return with_pauses(attempt, sys.stderr.write)


def main() -> int:
    """Creates or updates the environment; returns the exit code."""
    LOG.unlink(missing_ok=True)
    if version_of(str(ENVIRONMENT / "bin" / "python")) is None:
        python = find_python()
        if python is None:
            sys.stderr.write(
                "error: no Python 3.11, 3.12 or 3.13 with venv found; install one (on Debian or "
                "Ubuntu: apt install python3.11 python3.11-venv) or name it: "
                "BLIP_EDGE_PYTHON=/path/to/python3.11\n"
            )
            return 1
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        if run_logged([python, "-m", "venv", str(ENVIRONMENT)], "creating .venv"):
            sys.stderr.write(
                f"error: {python} could not create .venv; see {LOG.relative_to(ROOT)}\n"
            )
            return 1
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    requirements = ["-r", "requirements/development.txt", "-c", "requirements/constraints.txt"]
    arguments = [*pip, "install", *requirements, "-e", "."]
    why = install(arguments, "installing the pinned requirements into .venv")
    if why is not None:
        sys.stderr.write(
            f"error: pip could not install the requirements: {why}; see the end of "
            f"{LOG.relative_to(ROOT)}, then run the same make command again\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
