"""Shared fixtures. Artifacts are built once, through the pipeline's own commands, and reused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/reference.yaml"


def run_stage(*arguments: str, timeout_s: int = 1500) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m <arguments>`` in the repository root, as the Makefile does."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _require(*arguments: str) -> None:
    result = run_stage(*arguments)
    if result.returncode != 0:
        pytest.fail(f"python -m {' '.join(arguments)} failed:\n{result.stdout}\n{result.stderr}")


@pytest.fixture(scope="session")
def exported_artifacts() -> Path:
    """models/artifacts/reference with every ONNX exported (unchanged ones are reused)."""
    _require("export", "--config", CONFIG)
    return ROOT / "models" / "artifacts" / "reference"


@pytest.fixture(scope="session")
def openvino_artifacts(exported_artifacts: Path) -> Path:
    """The same with every OpenVINO IR."""
    _require("compile", "--config", CONFIG, "--target", "openvino")
    return exported_artifacts


@pytest.fixture(scope="session")
def reference_artifacts(openvino_artifacts: Path) -> Path:
    """The same with the BModels of every chip: the whole reference pipeline."""
    _require("compile", "--config", CONFIG)
    return openvino_artifacts
