"""Finds a Python 3.10 for TPU-MLIR by running candidates: a name may be a shim that fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ConfigError, ToolError

#: The wheel requires >=3.10,<3.11.
REQUIRED = (3, 10)
OVERRIDE_VARIABLE = "TPU_MLIR_PYTHON"
_ROOT = Path(__file__).resolve().parent.parent
#: Where one is kept that set-up fetched.
FETCHED = _ROOT / ".cache" / "python"
_FETCH_TIMEOUT_S = 900

_PROBE_TIMEOUT_SECONDS = 30
_PROBE = (
    "import sys, venv, ensurepip; "
    "print('%d.%d %s' % (sys.version_info[0], sys.version_info[1], sys.executable))"
)
#: These make one Python read another's files.
_FOREIGN_VARIABLES = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


@dataclass(frozen=True)
class Candidate:
    """A command that might be a Python 3.10, and where the idea came from."""

    source: str
    command: str


def clean_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """A copy of the environment without what would redirect another Python's imports."""
    current = os.environ if environment is None else environment
    return {name: value for name, value in current.items() if name not in _FOREIGN_VARIABLES}


def _pyenv_versions(environment: Mapping[str, str]) -> list[str]:
    home = environment.get("HOME", str(Path.home()))
    root = Path(environment.get("PYENV_ROOT") or Path(home, ".pyenv"))

    def patch(folder: Path) -> int:
        match = re.fullmatch(r"3\.10\.(\d+)", folder.name)
        return int(match[1]) if match else -1

    folders = sorted((root / "versions").glob("3.10.*"), key=patch, reverse=True)
    return [str(folder / "bin" / "python3.10") for folder in folders if patch(folder) >= 0]


def _uv_python(environment: Mapping[str, str]) -> str | None:
    uv = shutil.which("uv", path=environment.get("PATH"))
    if uv is None:
        return None
    try:
        found = subprocess.run(
            [uv, "python", "find", "--no-project", "3.10"],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_SECONDS,
            env=clean_environment(environment),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    path = found.stdout.strip()
    return path if found.returncode == 0 and path else None


def candidates(environment: Mapping[str, str]) -> Iterator[Candidate]:
    """What to try, best first; ``$TPU_MLIR_PYTHON`` is handled by :func:`find_python`."""
    on_path = shutil.which("python3.10", path=environment.get("PATH"))
    if on_path:
        yield Candidate("python3.10 on PATH", on_path)
    for path in _pyenv_versions(environment):
        yield Candidate("pyenv", path)
    uv_python = _uv_python(environment)
    if uv_python:
        yield Candidate("uv", uv_python)
    for fetched in sorted(FETCHED.glob("cpython-3.10*/bin/python3.10")):
        yield Candidate("fetched by set-up", str(fetched))


def probe(command: str, environment: Mapping[str, str] | None = None) -> Path | str:
    """Runs a candidate: its real executable's path, or one line saying why it will not do."""
    try:
        result = subprocess.run(
            [command, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_SECONDS,
            env=clean_environment(environment),
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_PROBE_TIMEOUT_SECONDS} s"
    except OSError as error:
        return error.strerror or "cannot be run"
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        if "ModuleNotFoundError" in lines[-1]:
            return f"{lines[-1]}; install its venv package"
        return lines[0]
    version, _, executable = result.stdout.strip().partition(" ")
    if version != f"{REQUIRED[0]}.{REQUIRED[1]}":
        return f"is Python {version or 'unknown'}"
    return Path(executable).resolve()


def find_python(environment: Mapping[str, str] | None = None) -> Path:
    """The first candidate that runs and is a Python 3.10 with ``venv`` and ``ensurepip``.

    Raises:
        ConfigError: ``$TPU_MLIR_PYTHON`` is set to something that is not one.
        ToolError: none found.
    """
    environment = os.environ if environment is None else environment
    wanted = environment.get(OVERRIDE_VARIABLE)
    if wanted:
        found = probe(wanted, environment)
        if isinstance(found, str):
            raise ConfigError(
                f"{OVERRIDE_VARIABLE}={wanted}: {found}; set it to a Python 3.10, or unset it"
            )
        return found
    failures = []
    for candidate in candidates(environment):
        found = probe(candidate.command, environment)
        if isinstance(found, Path):
            return found
        failures.append(f"{candidate.command} ({candidate.source}): {found}")
    tried = "; ".join(failures) if failures else "no python3.10 on PATH, under pyenv or from uv"
    raise ToolError(
        f"TPU-MLIR needs Python 3.10 and none works here: {tried}. Install one "
        f"(`uv python install 3.10` or `pyenv install 3.10`) or set {OVERRIDE_VARIABLE}"
    )


def find_or_fetch() -> Path:
    """A Python 3.10 of this machine, or one that uv fetches into the checkout's ``.cache``.

    Raises:
        ConfigError: ``$TPU_MLIR_PYTHON`` is set to something that is not one.
        ToolError: none found, and none could be fetched.
    """
    try:
        return find_python()
    except ToolError as error:
        if why := _fetch():
            raise ToolError(f"{error}; uv could not fetch one: {why}") from None
    return find_python()


def _fetch() -> str | None:
    """Lets uv install Python 3.10; returns why it could not."""
    own = _ROOT / ".venv" / "bin" / "uv"
    uv = str(own) if own.is_file() else shutil.which("uv")
    if uv is None:
        return "uv is not installed; run: make setup"
    print(f"no Python 3.10 here: uv fetches one into {FETCHED.parent.name}", file=sys.stderr)
    command = [uv, "python", "install", "3.10", "--no-bin", "--install-dir", str(FETCHED)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_FETCH_TIMEOUT_S,
            env=clean_environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return " ".join(str(error).split())[:200]
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1].strip() if done.returncode else None
