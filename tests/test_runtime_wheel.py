"""The package: what the wheel holds, and that it runs far from the project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from runtime import Captioner, __version__
from tests.board_environment import board_environment, oldest_python
from tests.runtime_support import IMAGES, ROOT, THREADS

#: What a checkout has beside its sources, none of which decides what the wheel holds.
NO_SOURCES = (".*", "models", "build", "*.egg-info", "__pycache__")
CHECK = """
import json, sys
import blip_edge
assert "numpy" not in sys.modules, "import blip_edge loads numpy"
folder, first, second = sys.argv[1:]
with blip_edge.Captioner.from_artifacts(folder, target="onnx", threads=1) as captioner:
    one, several = captioner(first), captioner([first, second])
assert type(one) is type(several[1]) is blip_edge.Caption
print(json.dumps({
    "version": blip_edge.__version__,
    "file": blip_edge.__file__,
    "one": one.token_ids,
    "several": [caption.token_ids for caption in several],
}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Output of a command that knows nothing of the checkout."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources: building leaves its own files beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "sources", ignore=shutil.ignore_patterns(*NO_SOURCES))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, folder / "sources", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(exported_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pictures, and the artifacts as they are copied to a machine."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for index in range(2):
        IMAGES[index].save(folder / f"{index}.png")
    source = exported_artifacts / "caption"
    shutil.copytree(source / "onnx", folder / "caption" / "onnx")
    shutil.copytree(source / "processor", folder / "caption" / "processor")
    shutil.copy(source / "manifest.json", folder / "caption")
    return folder


@pytest.fixture(scope="module")
def expected(elsewhere: Path) -> list[list[int]]:
    with Captioner.from_artifacts(elsewhere, target="onnx", threads=THREADS) as captioner:
        return [list(caption.token_ids) for caption in captioner(IMAGES[:2])]


@pytest.fixture(scope="module", params=["here", "3.8"])
def installed(
    request: pytest.FixtureRequest,
    pytestconfig: pytest.Config,
    wheel: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """An environment with nothing but the wheel; of its dependencies it gets the paths.

    Those of this interpreter are the tests' own, those of Python 3.8 what a board has: neither
    downloads them for every run.
    """
    if request.param == "here":
        python, packages = Path(sys.executable), sysconfig.get_path("purelib")
    else:
        python = oldest_python()
        if python == Path(sys.executable):
            pytest.skip("no Python 3.8 here; install it or set BLIP_EDGE_BOARD_PYTHON")
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        packages = run(board_environment(pytestconfig), "-c", where, cwd=ROOT).strip()
    folder = tmp_path_factory.mktemp("environment")
    run(python, "-m", "venv", folder, cwd=folder)
    environment = folder / "bin" / "python"
    options = ["--disable-pip-version-check", "--no-deps", "--no-index", "-q"]
    run(environment, "-m", "pip", "install", *options, wheel, cwd=folder)
    (site,) = folder.glob("lib/python3*/site-packages")
    # A plain path: the editable installation among these packages stays out of it.
    (site / "dependencies.pth").write_text(f"{packages}\n")
    return environment


def test_the_wheel_holds_the_runtime_and_nothing_else(wheel: Path) -> None:
    information = f"blip_edge-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(archive.read(f"{information}/METADATA").decode())
    assert {name.split("/")[0] for name in names} == {"blip_edge", information}
    modules = {path.relative_to(ROOT / "runtime") for path in (ROOT / "runtime").rglob("*.py")}
    page = {path.relative_to(ROOT / "runtime") for path in (ROOT / "runtime").rglob("page/*")}
    wanted = {f"blip_edge/{path.as_posix()}" for path in modules | page} | {"blip_edge/py.typed"}
    assert {name for name in names if name.startswith("blip_edge/")} == wanted
    assert f"{information}/licenses/LICENSE" in names
    assert wheel.name == f"blip_edge-{__version__}-py3-none-any.whl"
    assert metadata["Requires-Python"] == ">=3.8"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        *("onnxruntime", "openvino", "serve", "signing")
    }
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra" not in line]
    assert sorted(line.split(">")[0] for line in needed) == ["numpy", "pillow", "tokenizers"]
    assert str(metadata.get_payload()).startswith("# blip-edge")


def test_it_captions_far_from_the_project(
    installed: Path, elsewhere: Path, expected: list[list[int]]
) -> None:
    output = run(installed, "-c", CHECK, elsewhere, "0.png", "1.png", cwd=elsewhere)
    found = json.loads(output)
    assert found["version"] == __version__
    assert Path(found["file"]).is_relative_to(installed.parent.parent)
    assert found["one"] == expected[0]
    assert found["several"] == expected


def test_the_commands(installed: Path, elsewhere: Path, expected: list[list[int]]) -> None:
    assert "caption" in run(installed, "-m", "blip_edge", "--help", cwd=elsewhere)
    arguments = ["caption", "0.png", "--artifacts", ".", "--target", "onnx", "--json"]
    script = installed.with_name("blip-edge")
    for command in ([script], [installed, "-m", "blip_edge"]):
        found = json.loads(run(*command, *arguments, cwd=elsewhere))
        assert found["token_ids"] == expected[0]
