"""Creates .venv with the locked requirements; standard library only, for it runs first.

An environment that is up to date, by the content of what it was made from, is left as it is.
"""

from __future__ import annotations

import hashlib
import json
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
LOCK = ROOT / "requirements" / "lock.txt"
#: torch: its CPU build where one can be had, else its CUDA build with all that this needs.
CPU_LOCK = ROOT / "requirements" / "lock-torch-cpu.txt"
CUDA_LOCK = ROOT / "requirements" / "lock-torch-cuda.txt"
STAMP_NAME = "blip-edge-setup.json"
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


def made_from(environment: Path, *files: Path) -> dict[str, str]:
    """What an environment depends on: the content of files, and where it stands.

    Its programs name their interpreter by its whole path, so a moved environment does not run.
    """
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {**digests, "place": str(environment.resolve())}


def stamp_of(environment: Path) -> dict[str, str]:
    """What an environment was made from, by its stamp; empty where that is missing or damaged."""
    try:
        stamp = json.loads((environment / STAMP_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def pip_install(python: Path, lock: Path) -> list[str]:
    """The command that installs exactly the files that a lock file names by their digests."""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--no-input"]
    return [*pip, "--no-deps", "--require-hashes", "-r", str(lock)]


def _install_all(python: Path) -> str | None:
    """Installs everything; returns why it could not."""
    # Wheels alone: a source package would run code of packages that no lock names.
    wheels = ["--only-binary", ":all:"]
    if why := install([*pip_install(python, LOCK), *wheels], "installing packages"):
        return why
    if run_logged([*pip_install(python, CPU_LOCK), *wheels], "installing torch's CPU build"):
        cuda = [*pip_install(python, CUDA_LOCK), *wheels]
        if why := install(cuda, "there is none here: installing torch's CUDA build"):
            return why
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install"]
    own = ["--no-deps", "--no-build-isolation", "-e", "."]
    return install([*pip, *own], "installing blip-edge")


def _create() -> str | None:
    """Makes an empty .venv unless one that runs here is there; returns why it could not."""
    stamp = stamp_of(ENVIRONMENT)
    place = stamp.get("place", str(ENVIRONMENT.resolve()))
    if place != str(ENVIRONMENT.resolve()):
        sys.stderr.write(f"{ENVIRONMENT.name} was made elsewhere and moved: it is made anew\n")
    elif version_of(str(ENVIRONMENT / "bin" / "python")) is not None:
        return None
    python = find_python()
    if python is None:
        return (
            "no Python 3.11, 3.12 or 3.13 with venv found; install one (on Debian or Ubuntu: "
            "apt install python3.11 python3.11-venv) or name it: "
            "BLIP_EDGE_PYTHON=/path/to/python3.11"
        )
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    if run_logged([python, "-m", "venv", str(ENVIRONMENT)], "creating .venv"):
        return f"{python} could not create .venv; see {LOG.relative_to(ROOT)}"
    return None


def main() -> int:
    """Creates or updates the environment; returns the exit code."""
    wanted = made_from(ENVIRONMENT, LOCK, CPU_LOCK, CUDA_LOCK, ROOT / "pyproject.toml")
    if stamp_of(ENVIRONMENT) == wanted and (ENVIRONMENT / "bin" / "python").exists():
        return 0
    LOG.unlink(missing_ok=True)
    if why := _create():
        sys.stderr.write(f"error: {why}\n")
        return 1
    (ENVIRONMENT / STAMP_NAME).unlink(missing_ok=True)
    if why := _install_all(ENVIRONMENT / "bin" / "python"):
        sys.stderr.write(
            f"error: pip could not install the requirements: {why}; see the end of "
            f"{LOG.relative_to(ROOT)}, then run the same make command again\n"
        )
        return 1
    stamp = ENVIRONMENT / STAMP_NAME
    stamp.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
