"""Shared fixtures. Artifacts are built once, through the pipeline's own commands, and reused."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from scripts.checks import browser_path

ROOT = Path(__file__).resolve().parent.parent
# Compiled models of tests go where the rest of a run's temporary files go, not to the user's cache.
_CACHE = tempfile.TemporaryDirectory(prefix="blip-edge-cache-")
os.environ["BLIP_EDGE_CACHE"] = _CACHE.name
# Tests call make themselves: what the make that runs them hands on is not theirs.
for _name in ("CALLER", "MAKECMDGOALS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CONFIG"):
    os.environ.pop(_name, None)
CONFIG = "configs/reference.yaml"


#: opt-in markers: what such a test needs, and the command that runs it
OPT_IN = {
    "slow": ("full-size models and many minutes", "make test-slow"),
    "device": ("a SOPHON board or card", "make test-device"),
    "network": ("a model hub", "make test-network"),
    "bare": ("root, mmdebstrap and Debian's packages", "python -m pytest -m bare"),
}


NO_BROWSER = (
    "needs a browser; run: apt-get install chromium (or set BROWSER_PATH), then: make test-browser"
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lists opt-in tests as skipped, with the command that runs them, unless -m asks for them."""
    asked = str(config.getoption("markexpr"))
    # CI sets REQUIRE_BROWSER: there a missing browser is a failure.
    no_browser = (
        browser_path() is None and "browser" not in asked and not os.environ.get("REQUIRE_BROWSER")
    )
    for item in items:
        if no_browser and item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.skip(reason=NO_BROWSER))
        for marker, (need, command) in OPT_IN.items():
            if item.get_closest_marker(marker) and marker not in asked:
                item.add_marker(pytest.mark.skip(reason=f"needs {need}; run: {command}"))


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
    """models/artifacts/reference with every ONNX exported (unchanged ones are reused).

    Tests share it with the user, as a cache: they build there. Whatever else they write goes to a
    copy.
    """
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


@pytest.fixture(scope="session")
def verified_pipeline(reference_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline file of a verified caption task, of which tests make bundles."""
    from tests.bundle_support import verified_pipeline as make

    return make(reference_artifacts, tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def bundles(verified_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One bundle for OpenVINO and one for BM1684X, by target."""
    from bundle.pipeline import Options, make_bundles
    from pipeline.command import select

    options = Options(folder=tmp_path_factory.mktemp("dist"))
    made = make_bundles(select(verified_pipeline), options)
    return dict(zip(("openvino", "bm1684x"), made, strict=True))
