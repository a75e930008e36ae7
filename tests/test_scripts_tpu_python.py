"""Finding a Python 3.10 for TPU-MLIR: candidates are run, not believed."""

import os
from pathlib import Path

import pytest

from configs.errors import ConfigError, ToolError
from scripts import tpu_python
from scripts.tpu_python import find_or_fetch, find_python, probe

SHIM_FAILURE = "pyenv: python3.10: command not found"


def interpreter(path: Path, *, version: str = "3.10", failure: str = "") -> Path:
    """A program that answers the probe like Python ``version``, or fails like a shim."""
    path.parent.mkdir(parents=True, exist_ok=True)
    answer = f"echo '{failure}' >&2; exit 127" if failure else f"echo '{version} {path}'"
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "path").mkdir()
    return {"PATH": f"{tmp_path / 'path'}:/usr/bin:/bin", "HOME": str(tmp_path / "home")}


def test_a_working_python_on_the_path(tmp_path: Path, environment: dict[str, str]) -> None:
    wanted = interpreter(tmp_path / "path" / "python3.10")
    assert find_python(environment) == wanted


def test_a_failing_shim_is_passed_over(tmp_path: Path, environment: dict[str, str]) -> None:
    interpreter(tmp_path / "path" / "python3.10", failure=SHIM_FAILURE)
    versions = tmp_path / "home" / ".pyenv" / "versions"
    interpreter(versions / "3.10.9" / "bin" / "python3.10")
    newest = interpreter(versions / "3.10.13" / "bin" / "python3.10")
    interpreter(versions / "3.11.7" / "bin" / "python3.10", version="3.11")
    assert find_python(environment) == newest


def test_pyenv_root_is_honoured(tmp_path: Path, environment: dict[str, str]) -> None:
    environment["PYENV_ROOT"] = str(tmp_path / "elsewhere")
    wanted = interpreter(tmp_path / "elsewhere" / "versions" / "3.10.1" / "bin" / "python3.10")
    assert find_python(environment) == wanted


def test_uv_is_asked_last(tmp_path: Path, environment: dict[str, str]) -> None:
    managed = interpreter(tmp_path / "managed" / "python3.10")
    uv = tmp_path / "path" / "uv"
    uv.write_text(f"#!/bin/sh\necho {managed}\n")
    uv.chmod(0o755)
    assert find_python(environment) == managed
    on_path = interpreter(tmp_path / "path" / "python3.10")
    assert find_python(environment) == on_path


def test_none_found_names_what_was_tried_and_the_cure(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with pytest.raises(ToolError, match="on PATH, under pyenv or from uv"):
        find_python(environment)
    interpreter(tmp_path / "path" / "python3.10", failure=SHIM_FAILURE)
    old = tmp_path / "home" / ".pyenv" / "versions" / "3.10.2" / "bin" / "python3.10"
    interpreter(old, version="3.9")
    with pytest.raises(ToolError) as caught:
        find_python(environment)
    message = str(caught.value)
    assert SHIM_FAILURE in message
    assert f"{old} (pyenv): is Python 3.9" in message
    assert "uv python install 3.10" in message
    assert "\n" not in message


def test_the_override_is_used_or_refused(tmp_path: Path, environment: dict[str, str]) -> None:
    interpreter(tmp_path / "path" / "python3.10")
    chosen = interpreter(tmp_path / "chosen" / "python")
    environment["TPU_MLIR_PYTHON"] = str(chosen)
    assert find_python(environment) == chosen
    for command, reason in (
        (str(interpreter(tmp_path / "new" / "python", version="3.12")), "is Python 3.12"),
        (str(tmp_path / "nowhere"), "No such file"),
    ):
        environment["TPU_MLIR_PYTHON"] = command
        with pytest.raises(ConfigError, match=reason) as caught:
            find_python(environment)
        assert caught.value.exit_code == 2


def test_the_real_one_of_this_machine() -> None:
    found = find_python()
    assert probe(str(found)) == found
    assert os.access(found, os.X_OK)


@pytest.fixture
def no_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without Python 3.10; returns where uv is expected."""
    (tmp_path / "path").mkdir()
    for name in ("PYENV_ROOT", "TPU_MLIR_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tpu_python, "_ROOT", tmp_path)
    monkeypatch.setattr(tpu_python, "FETCHED", tmp_path / ".cache" / "python")
    uv = tmp_path / ".venv" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    return uv


def test_a_missing_python_is_fetched(tmp_path: Path, no_python: Path) -> None:
    ready = interpreter(tmp_path / "ready")
    no_python.write_text(
        '#!/bin/sh\n[ "$1 $2 $3 $5" = "python install 3.10 --install-dir" ] || exit 9\n'
        f'mkdir -p "$6/cpython-3.10.19/bin" && cp {ready} "$6/cpython-3.10.19/bin/python3.10"\n'
    )
    no_python.chmod(0o755)
    assert find_or_fetch() == ready
    assert (tmp_path / ".cache/python/cpython-3.10.19/bin/python3.10").is_file()


@pytest.mark.parametrize(
    ("program", "why"), [("echo offline >&2; exit 1", "offline"), (None, "uv is not installed")]
)
def test_one_that_cannot_be_fetched_names_the_one_command(
    no_python: Path, program: str | None, why: str
) -> None:
    if program:
        no_python.write_text(f"#!/bin/sh\n{program}\n")
        no_python.chmod(0o755)
    with pytest.raises(ToolError, match=f"uv python install 3.10.*could not fetch one: {why}"):
        find_or_fetch()
