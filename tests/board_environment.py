"""An old Python with the runtime's requirements only, as on a board; kept between runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements" / "runtime.txt"
#: Needs of onnxruntime that running a graph does not need are left out: the download halves.
WITHOUT_DEPENDENCIES = ("onnxruntime", "tokenizers")


def oldest_python() -> Path:
    """A Python 3.8 if there is one, else the interpreter of these tests."""
    candidates = [os.environ.get("BLIP_EDGE_BOARD_PYTHON"), shutil.which("python3.8")]
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates += [str(path) for path in sorted(versions.glob("3.8*/bin/python"))]
    for candidate in candidates:
        if candidate is None:
            continue
        answer = subprocess.run(
            [candidate, "-c", "import sys; print(sys.version_info[:2] == (3, 8))"],
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.stdout.strip() == "True":
            return Path(candidate)
    return Path(sys.executable)


def board_environment(pytestconfig: pytest.Config) -> Path:
    """The interpreter of an environment with numpy, Pillow, tokenizers and onnxruntime only."""
    python = oldest_python()
    backend = REQUIREMENTS.with_name("runtime-onnxruntime.txt")
    content = REQUIREMENTS.read_bytes() + backend.read_bytes() + str(python).encode()
    key = hashlib.sha256(content).hexdigest()[:12]
    folder = Path(str(pytestconfig.cache.mkdir("board_python"))) / key
    installed = folder / "bin" / "python"
    if (folder / "complete").exists():
        return installed
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([str(python), "-m", "venv", str(folder)], check=True, capture_output=True)
    wanted = [
        line.strip()
        for line in (REQUIREMENTS.read_text() + backend.read_text()).splitlines()
        if line.strip() and not line.startswith(("#", "-"))
    ]
    bare = [line for line in wanted if line.startswith(WITHOUT_DEPENDENCIES)]
    for options, names in (([], [w for w in wanted if w not in bare]), (["--no-deps"], bare)):
        command = [str(installed), "-m", "pip", "install", "-q", "--only-binary", ":all:"]
        result = subprocess.run(
            [*command, *options, *names], capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            pytest.skip(f"pip cannot install the board's packages: {result.stderr[-300:]}")
    (folder / "complete").touch()
    return installed
