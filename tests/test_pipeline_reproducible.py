"""The same bytes wherever and whenever an artifact is built."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import openvino
import pytest

from compile.bmodel.canonical import TIME, _Table, make_canonical
from compile.ir.backend import OpenVinoBackend
from configs.errors import ToolError
from pipeline.tpu_tools.process import MemoryBudget
from tests.compile_private import private_pipeline

ROOT = Path(__file__).resolve().parent.parent
#: A checkout's own outputs, and what no artifact is made from.
LEFT_OUT = (".*", "artifacts", "docs", "tests", "training", "__pycache__", "*.egg-info")
#: Another zone, hash seed and language; a folder and a number of cores are the caller's.
ELSEWHERE = {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "77", "LC_ALL": "C", "OMP_NUM_THREADS": "1"}
#: Written beside artifacts, or answers of a check; not part of any.
NO_ARTIFACT = ("logs", "work", "bisect", "board-test")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A checkout without artifacts, in a deeper folder."""
    checkout = tmp_path / "another place" / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for name in (".venv", ".venv-tpu"):
        (checkout / name).symlink_to((ROOT / name).resolve())
    return checkout


def build(checkout: Path, *arguments: str) -> None:
    """Runs a stage on one core, in another zone, language and hash seed."""
    core = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "-c", core, sys.executable, "-m", *arguments]
    result = subprocess.run(
        command,
        cwd=checkout,
        env={**os.environ, **ELSEWHERE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def artifacts(checkout: Path) -> Iterator[Path]:
    """Files of all artifacts, relative to the pipeline's folder."""
    root = checkout / "models" / "artifacts" / "reference"
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and relative.parts[0] not in NO_ARTIFACT:
            yield relative


def differing(checkout: Path) -> tuple[list[str], list[str]]:
    """Files of another checkout that are the same here, and those that are not."""
    here, there = (one / "models" / "artifacts" / "reference" for one in (ROOT, checkout))
    same: list[str] = []
    other: list[str] = []
    for path in artifacts(checkout):
        if path.name == "pipeline.json":  # names the pipeline file as it was given
            continue
        equal = (here / path).read_bytes() == (there / path).read_bytes()
        (same if equal else other).append(str(path))
    return same, other


@pytest.mark.usefixtures("reference_artifacts")
def test_a_component_for_every_target_is_the_same_bytes_elsewhere(elsewhere: Path) -> None:
    chosen = ("--task", "itm", "--component", "vision_projection")
    build(elsewhere, "export", *chosen)
    build(elsewhere, "compile", *chosen)
    same, other = differing(elsewhere)
    assert not other
    # ONNX, reference and manifest; IR in two precisions; BModels of three chips; the processor.
    assert {Path(name).suffix for name in same} >= {".onnx", ".npz", ".xml", ".bin", ".bmodel"}
    assert sum(name.endswith(".bmodel") for name in same) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("reference_artifacts")
def test_the_whole_reference_pipeline_is_the_same_bytes_elsewhere(elsewhere: Path) -> None:
    build(elsewhere, "export")
    # In another order: what was built before, or beside, must not show.
    build(elsewhere, "compile", "--task", "vqa", "--target", "openvino")
    build(elsewhere, "compile")
    same, other = differing(elsewhere)
    assert not other
    assert sum(name.endswith(".bmodel") for name in same) > 30


def test_an_ir_does_not_show_what_was_built_before(
    exported_artifacts: Path, tmp_path: Path
) -> None:
    pipeline = private_pipeline(exported_artifacts, tmp_path, "caption", "text_decoder")
    job, source = pipeline.job("text_decoder", "openvino", "f16"), pipeline.source("text_decoder")
    backend = OpenVinoBackend(MemoryBudget(1))
    built = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        backend.build(backend.plan(job, source), folder)
        built.append({path.name: path.read_bytes() for path in folder.iterdir()})
        openvino.opset13.constant(0)
    assert built[0] == built[1]
    names = [
        op.get_friendly_name()
        for op in openvino.Core().read_model(folder / "text_decoder.xml").get_ops()
    ]
    assert len(set(names)) == len(names)


@pytest.fixture
def bmodel(reference_artifacts: Path, tmp_path: Path) -> Path:
    """A copy of a real BM1684 file of the smallest net, as it is shipped."""
    source = reference_artifacts / "itm/BM1684/itm_vision_projection_bm1684_f32_1b.bmodel"
    return Path(shutil.copy(source, tmp_path))


def as_compiled(data: bytes, mode: int) -> bytes:
    """A shipped file as the compiler leaves it where ``KernelModule.mode`` is not zero."""
    size = struct.unpack_from("<I", data, 8)[0]
    content = bytearray(data[64 : 64 + size])
    model = _Table(content, struct.unpack_from("<I", content, 0)[0])
    others = range(5)
    rest = min(model.target(index) for index in others)
    head = content[: model.at + struct.unpack_from("<H", content, model.fields + 2)[0]]
    head += bytes(-len(head) % 8)
    for index in (6, 8):
        field = model.field(index)
        struct.pack_into("<I", head, field, len(head) + 16 - field)
        head += struct.pack("<5H6x ii16xI I4x", 10, 28, 24, 8, 4, 16, mode, 4, 0)
        head += bytes(-len(head) % 8)
        mode = 0
    head += bytes((rest - len(head)) % 8)
    for index in others:
        field = model.field(index)
        struct.pack_into("<I", head, field, model.target(index) + len(head) - rest - field)
    made = bytes(head + content[rest:]).replace(TIME, b"Sat Nov 28 09:50:20 2026\n")
    made = made.rstrip(b"\0") + bytes(8)
    made += bytes(-(64 + len(made)) % 4096)
    return data[:8] + struct.pack("<I", len(made)) + data[12:64] + made + data[64 + size :]


@pytest.mark.parametrize("mode", [1, 336, -1902389595])
def test_memory_that_the_compiler_never_set_does_not_show(bmodel: Path, mode: int) -> None:
    shipped = bmodel.read_bytes()
    bmodel.write_bytes(as_compiled(shipped, mode))
    assert bmodel.read_bytes() != shipped
    # The vendor's own reader takes it, so it is a file as the compiler could have left it.
    assert "create time: Sat Nov 28 09:50:20 2026" in printed(bmodel)
    make_canonical(bmodel)
    assert bmodel.read_bytes() == shipped
    assert f"create time: {TIME.decode().strip()}" in printed(bmodel)


def printed(path: Path) -> str:
    tool = ROOT / ".venv-tpu" / "bin" / "model_tool"
    done = subprocess.run([tool, "--info", path], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda data: data[:-1], "header"),
        (lambda data: b"\0" + data[1:], "header"),
        (lambda data: data.replace(b"2.2+v1", b"3.0+v1"), "version"),
        (lambda data: data.replace(TIME, b"1970-01-01T00:00:00Z     "), "time"),
        (lambda data: data[:64] + b"\xff" * 64 + data[128:], "content"),
    ],
)
def test_a_file_of_another_format_is_refused_and_left_as_it_is(
    bmodel: Path, change: Callable[[bytes], bytes], what: str
) -> None:
    changed = change(bmodel.read_bytes())
    bmodel.write_bytes(changed)
    with pytest.raises(ToolError, match=f"its {what} is not of the BModel format 2.2"):
        make_canonical(bmodel)
    assert bmodel.read_bytes() == changed
