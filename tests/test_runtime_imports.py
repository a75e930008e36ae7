"""A caption loads and enters what it needs: one backend's modules, and few files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime_support import IMAGES, ROOT

#: Modules of one backend, which the others do not load.
OPENVINO = ("openvino", "runtime.sessions.openvino", "runtime.decoding.openvino")
BOARD = ("sophon", "runtime.sessions.board", "runtime.decoding.board")
SIMULATOR = ("runtime.simulator", "runtime.sessions.simulated")
ONNXRUNTIME = ("onnxruntime", "runtime.sessions.onnxruntime")
ARRAYS = ("runtime.decoding.decoder_run", "runtime.decoding.caches")
#: Files of the runtime of which code runs in ``blip-edge caption``, module bodies not counted.
MOST_FILES = 25

CAPTION = """
import sys
from runtime.__main__ import main
assert main(["caption", *sys.argv[1:]]) == 0
print(sorted(name for name, module in sys.modules.items() if module), file=sys.stderr)
"""
ENTERED = """
import sys, threading
from pathlib import Path
entered = set()
def note(frame, event, _):
    if event == "call" and frame.f_code.co_name != "<module>":
        entered.add(frame.f_code.co_filename)
threading.setprofile(note)
sys.setprofile(note)
from runtime.__main__ import main
assert main(["caption", *sys.argv[1:]]) == 0
sys.setprofile(None)
import runtime
root = Path(runtime.__file__).parent
print(sorted(Path(p).relative_to(root).as_posix() for p in entered if root in Path(p).parents),
      file=sys.stderr)
"""


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "scene.png"
    IMAGES[0].save(path)
    return path


def captioned(program: str, picture: Path, artifacts: Path, target: str) -> list[str]:
    """The list of names that a program prints after it captioned the picture."""
    device = ["--device", "simulator"] if target.startswith("bm") else []
    arguments = [str(picture), "--artifacts", str(artifacts), "--target", target, *device]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["text"]
    names: list[str] = json.loads(result.stderr.splitlines()[-1].replace("'", '"'))
    return names


def matching(names: list[str], prefixes: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.startswith(prefixes)]


@pytest.mark.parametrize(
    ("target", "own", "others"),
    [
        ("openvino", OPENVINO, BOARD + SIMULATOR + ONNXRUNTIME + ARRAYS),
        ("onnx", ONNXRUNTIME, OPENVINO + BOARD + SIMULATOR),
        ("bm1684x", SIMULATOR, OPENVINO + BOARD + ONNXRUNTIME),
    ],
)
def test_a_caption_loads_its_own_backend_only(
    request: pytest.FixtureRequest,
    picture: Path,
    target: str,
    own: tuple[str, ...],
    others: tuple[str, ...],
) -> None:
    fixture = "reference_artifacts" if target == "bm1684x" else "openvino_artifacts"
    loaded = captioned(CAPTION, picture, request.getfixturevalue(fixture), target)
    assert matching(loaded, own)
    assert matching(loaded, others) == []


def test_importing_the_package_loads_nothing_else() -> None:
    program = (
        "import sys; before = set(sys.modules); import runtime; print(set(sys.modules)-before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "numpy" not in result.stdout
    assert result.stdout.count("runtime") == 1


def test_a_caption_enters_few_files(openvino_artifacts: Path, picture: Path) -> None:
    entered = captioned(ENTERED, picture, openvino_artifacts, "openvino")
    assert "sessions/openvino_session.py" in entered
    assert len(entered) <= MOST_FILES, entered
