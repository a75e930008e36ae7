"""Nobody phones home: no library that we load writes an identity to the home folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.runtime_support import IMAGES

#: Of both libraries' telemetry, what Python can see: a name looked up, a connection, a process.
WATCH = """
import sys
def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect", "os.fork"):
        print(event, arguments, file=sys.stderr)
sys.addaudithook(refuse)
"""
LOADED = """
import openvino, onnxruntime, nncf, time
from openvino import convert_model
time.sleep(1)
"""
STARTS = {
    "runtime": "import runtime",
    "stages": "import pipeline",
    "compile": "from compile.ir.model import read_graph",
    "calibration": "from compile.calibration.inputs import onnxruntime",
    "doctor": "import scripts.checks",
    "benchmarks": "import benchmarks.workers",
}
CAPTION = """
import sys
from runtime import Captioner
for target in ("openvino", "onnx"):
    with Captioner.from_artifacts(sys.argv[1], target=target) as captioner:
        assert captioner(sys.argv[2]).text
"""
IN_A_CHILD = "import pipeline, subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"


def left_in_home(program: str, home: Path, *arguments: str) -> list[str]:
    """What a program writes into an empty home folder; it looks up no name meanwhile."""
    home.mkdir(exist_ok=True)
    # Both libraries keep quiet where CI is set, NNCF's also next to pytest.
    env = {k: v for k, v in os.environ.items() if k != "CI" and not k.startswith(("XDG_", "ORT_"))}
    result = subprocess.run(
        [sys.executable, "-c", WATCH + program, *arguments],
        cwd=ROOT,
        env={**env, "HOME": str(home), "BLIP_EDGE_CACHE": str(home.parent / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "socket." not in result.stderr
    assert "os.fork" not in result.stderr
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


@pytest.mark.parametrize("start", STARTS)
def test_the_home_folder_stays_empty(start: str, tmp_path: Path) -> None:
    assert left_in_home(STARTS[start] + LOADED, tmp_path / "home") == []


def test_the_libraries_would_write_there(tmp_path: Path) -> None:
    """What the tests above can see: onnxruntime's device id. (OpenVINO would look up a host.)"""
    found = left_in_home("import onnxruntime", tmp_path / "home")
    assert any(name.endswith("deviceid") for name in found)


def test_started_processes_inherit_it(tmp_path: Path) -> None:
    program = IN_A_CHILD.format(program="import onnxruntime")
    assert left_in_home(program.replace("subprocess.run", "subprocess.Popen"), tmp_path / "h") == []


def test_a_caption_leaves_nothing(openvino_artifacts: Path, tmp_path: Path) -> None:
    picture = tmp_path / "scene.png"
    IMAGES[0].save(picture)
    arguments = (str(openvino_artifacts), str(picture))
    assert left_in_home(CAPTION, tmp_path / "home", *arguments) == []


def test_reading_a_graph_leaves_nothing(exported_artifacts: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from compile.ir.model import read_graph\n"
        "assert read_graph(Path(sys.argv[1])).inputs"
    )
    graph = exported_artifacts / "itm/onnx/vision_projection.onnx"
    assert left_in_home(program, tmp_path / "home", str(graph)) == []
