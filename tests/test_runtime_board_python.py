"""The runtime on an old Python without torch, transformers or OpenCV, as on a board."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import Captioner, Matcher, QuestionAnswerer
from tests.runtime_support import IMAGES, ROOT, THREADS

REQUIREMENTS = ROOT / "requirements" / "runtime.txt"
#: Needs of onnxruntime that running a graph does not need are left out: the download halves.
WITHOUT_DEPENDENCIES = ("onnxruntime", "tokenizers")
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


@pytest.fixture(scope="module")
def board_python(pytestconfig: pytest.Config) -> Path:
    """An environment with numpy, Pillow, tokenizers and onnxruntime only, kept between runs."""
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
    modules = sorted(str(path) for path in (ROOT / "runtime").glob("*.py"))
    program = "import sys; [compile(open(p).read(), p, 'exec') for p in sys.argv[1:]]"
    result = subprocess.run(
        [str(board_python), "-c", program, *modules], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
