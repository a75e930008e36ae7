"""The runtime on an old Python without torch, transformers or OpenCV, as on a board."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from runtime import Captioner, Matcher, QuestionAnswerer
from tests.board_environment import board_environment
from tests.runtime_support import IMAGES, ROOT, THREADS

CHECK = """
import importlib.util, json, sys
sys.path.insert(0, sys.argv[1])
for name in ("torch", "transformers", "cv2"):
    assert importlib.util.find_spec(name) is None, name
from runtime import Captioner, Matcher, QuestionAnswerer
folder, image = sys.argv[2], sys.argv[3]
options = dict(target="onnx", threads=1)
found = {"version": list(sys.version_info[:2])}
with Captioner.from_artifacts(folder, **options) as captioner:
    found["caption"] = captioner(image, num_beams=3).token_ids
    found["prompted"] = captioner(image, "a picture of", repetition_penalty=1.2).token_ids
with QuestionAnswerer.from_artifacts(folder, **options) as answerer:
    found["answer"] = answerer(image, "how many shapes are there?").token_ids
with Matcher.from_artifacts(folder, **options) as matcher:
    found["probability"] = matcher(image, "two blue rings").probability
for name in ("torch", "transformers", "cv2"):
    assert name not in sys.modules, name
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def board_python(pytestconfig: pytest.Config) -> Path:
    return board_environment(pytestconfig)


def test_the_tasks_give_the_same_answers(
    exported_artifacts: Path, board_python: Path, tmp_path: Path
):
    image = tmp_path / "scene.png"
    IMAGES[0].save(image)
    result = subprocess.run(
        [str(board_python), "-c", CHECK, str(ROOT), str(exported_artifacts), str(image)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    options = {"target": "onnx", "threads": THREADS}
    with Captioner.from_artifacts(exported_artifacts, **options) as captioner:
        assert found["caption"] == list(captioner(image, num_beams=3).token_ids)
        prompted = captioner(image, "a picture of", repetition_penalty=1.2)
        assert found["prompted"] == list(prompted.token_ids)
    with QuestionAnswerer.from_artifacts(exported_artifacts, **options) as answerer:
        expected = answerer(image, "how many shapes are there?").token_ids
        assert found["answer"] == list(expected)
    with Matcher.from_artifacts(exported_artifacts, **options) as matcher:
        expected = matcher(image, "two blue rings").probability
        assert found["probability"] == pytest.approx(expected, abs=1e-4)


def test_the_command_line(exported_artifacts: Path, board_python: Path, tmp_path: Path):
    image = tmp_path / "scene.png"
    IMAGES[0].save(image)
    command = [str(board_python), "-m", "runtime", "caption", str(image), "--json"]
    result = subprocess.run(
        [*command, "--artifacts", str(exported_artifacts), "--target", "onnx"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["text"]


def test_every_module_compiles_on_the_board(board_python: Path):
    modules = sorted(str(path) for path in (ROOT / "runtime").rglob("*.py"))
    program = "import sys; [compile(open(p).read(), p, 'exec') for p in sys.argv[1:]]"
    result = subprocess.run(
        [str(board_python), "-c", program, *modules], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
