"""What can go wrong while compiling: one message with cause and cure, and nothing half-written."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from compile.ir.backend import OpenVinoBackend
from compile.pipeline import jobs, run
from configs.errors import InputError, ToolError
from pipeline.command import select
from pipeline.tpu_tools import command_lines, process, supervisor
from pipeline.tpu_tools.process import MemoryBudget, VendorTools, telling_lines
from tests.compile_private import PrivatePipeline, private_pipeline

SMALLEST = "vision_projection"


@pytest.fixture
def pipeline(exported_artifacts: Path, tmp_path: Path) -> PrivatePipeline:
    return private_pipeline(exported_artifacts, tmp_path, "itm", SMALLEST, "vision_encoder")


def fails(pipeline: PrivatePipeline, code: int, *arguments: str, component: str = SMALLEST) -> str:
    """Runs, expects this exit code and no artifact, and returns the message."""
    result = pipeline.run("--component", component, *arguments)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert pipeline.manifests() == {}
    assert not list(pipeline.root.rglob("*.building-*"))
    return result.stderr


def test_a_truncated_graph_is_refused_before_any_work(pipeline: PrivatePipeline) -> None:
    graph = pipeline.root / "itm" / "onnx" / f"{SMALLEST}.onnx"
    graph.write_bytes(graph.read_bytes()[:-100])
    for target in ("openvino", "bm1684x"):
        message = fails(pipeline, 2, "--target", target)
        assert "itm/onnx" in message
        assert f"{SMALLEST}.onnx" in message
        assert "make export FORCE=1" in message
    assert not (pipeline.root / "work").exists()


def test_a_graph_that_is_no_onnx_is_refused(pipeline: PrivatePipeline, tmp_path: Path) -> None:
    """Damage that the digest cannot show: the export itself was of garbage."""
    source = pipeline.source(SMALLEST)
    source.onnx.write_bytes(b"this is no graph")
    folder = tmp_path / "empty"
    folder.mkdir()
    backend = OpenVinoBackend(MemoryBudget(1))
    with pytest.raises(InputError, match="make export"):
        backend.build(backend.plan(pipeline.job(SMALLEST, "openvino"), source), folder)
    from compile.bmodel.prepare import write_prepared

    with pytest.raises(InputError, match="not a readable ONNX file"):
        write_prepared(source, (), (), folder)


@pytest.mark.parametrize("missing", ["component", "task"])
def test_a_missing_export_says_how_to_make_it(pipeline: PrivatePipeline, missing: str) -> None:
    task = pipeline.root / "itm"
    path = task / "onnx" / f"{SMALLEST}.manifest.json"
    (path if missing == "component" else task / "manifest.json").unlink()
    message = fails(pipeline, 2, "--target", "openvino")
    assert "not exported yet; run: make export" in message
    assert len(message.strip().splitlines()) == 1


def test_a_damaged_manifest_is_named(pipeline: PrivatePipeline) -> None:
    path = pipeline.root / "itm" / "onnx" / f"{SMALLEST}.manifest.json"
    path.write_text(path.read_text()[:200])
    assert "damaged manifest" in fails(pipeline, 2, "--target", "openvino")


def test_half_precision_for_bm1684_is_refused_at_once(pipeline: PrivatePipeline) -> None:
    message = fails(pipeline, 2, "--target", "bm1684", "--precision", "f16")
    assert "bm1684 cannot be built in f16; choose one of: f32" in message
    pipeline.data["targets"]["bm1684"]["precisions"] = ["f16"]
    pipeline.write()
    message = fails(pipeline, 2)
    assert "targets.bm1684.precisions: bm1684 cannot be built in f16" in message


def test_unknown_names_are_refused(pipeline: PrivatePipeline) -> None:
    assert "unknown target" in fails(pipeline, 2, "--target", "bm1999")
    assert "--backend tpu" in fails(pipeline, 2, "--backend", "tpu")


def test_a_missing_vendor_environment_says_how_to_make_it(
    pipeline: PrivatePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_lines, "TPU_ENVIRONMENT", tmp_path / "nowhere")
    selected = jobs(select(pipeline.config, component=SMALLEST, target="bm1684x"))
    with pytest.raises(ToolError, match="not installed; run: make setup-tpu"):
        run(selected)
    with pytest.raises(ToolError, match=r"model_deploy\.py: vendor tool not found.*make setup-tpu"):
        command_lines.tool(command_lines.DEPLOY)
    assert pipeline.manifests() == {}


def rejected_graph(path: Path) -> None:
    """A valid graph with an operator that TPU-MLIR does not know."""
    node = helper.make_node("Det", ["x"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([node], "g", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def test_a_vendor_failure_shows_command_code_lines_and_log(tmp_path: Path) -> None:
    rejected_graph(tmp_path / "det.onnx")
    folder, log = tmp_path / "work", tmp_path / "logs" / "det.log"
    folder.mkdir()
    argv = command_lines.transform("det", "../det.onnx")
    with pytest.raises(ToolError) as caught:
        VendorTools().run(argv, folder, log)
    message = str(caught.value)
    assert "model_transform.py failed with exit code 1" in message
    assert "--model_def ../det.onnx" in message
    assert str(log) in message
    assert "Op not support" in message
    assert log.stat().st_size > len(message)


def test_a_tool_that_hangs_is_ended_with_all_its_children(tmp_path: Path) -> None:
    rejected_graph(tmp_path / "det.onnx")
    argv = command_lines.transform("det", "../det.onnx")
    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.raises(ToolError, match=r"did not finish in 0\.2 s"):
        VendorTools().run(argv, folder, tmp_path / "det.log", timeout_s=0.2)
    assert_none_works_in(folder)


def test_telling_lines_prefer_errors(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("$ command\nError: first\n" + "progress\n" * 50)
    assert telling_lines(log) == ["Error: first"]
    log.write_text("$ command\n" + "progress\n" * 50)
    assert telling_lines(log) == ["progress"] * 8


def test_the_vendor_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TPUC_ROOT"):
        monkeypatch.setenv(name, "/elsewhere")
    monkeypatch.setenv("HOME", "/home/user")
    kept = process.clean_environment()
    assert "/elsewhere" not in kept.values()
    assert kept["HOME"] == "/home/user"


@pytest.fixture
def fake_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Stands in for a tool of the vendor: a shell script; the folder that it runs in."""
    tools, folder = tmp_path / "tools" / "bin", tmp_path / "folder"
    tools.mkdir(parents=True)
    folder.mkdir()
    monkeypatch.setattr(command_lines, "TPU_ENVIRONMENT", tools.parent)
    monkeypatch.setattr(process, "version", lambda: "1.2.3")

    def made(script: str) -> Path:
        (tools / "tool").write_text(f"#!/bin/sh\n{script}\n")
        (tools / "tool").chmod(0o755)
        return folder

    return made


def test_a_tools_process_cannot_escape_into_a_session_of_its_own(
    fake_tool: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = fake_tool("setsid sh -c 'sleep 60' & sleep 60")
    with pytest.raises(ToolError, match=r"did not finish in 0\.5 s"):
        VendorTools().run(["tool"], folder, tmp_path / "log", timeout_s=0.5)
    assert_none_works_in(folder)
    folder = fake_tool("setsid sh -c 'sleep 60' & exit 3")
    with pytest.raises(ToolError, match="failed with exit code 3"):
        VendorTools().run(["tool"], folder, tmp_path / "log")
    assert_none_works_in(folder)


def test_all_processes_end_whenever_their_tool_is_given_up(tmp_path: Path) -> None:
    """In two threads, the end of one process hid another's from whoever killed it."""
    escaping = "for i in 1 2 3 4 5 6; do setsid sh -c 'sleep 60; true' & done; sleep 60"
    for round_ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-IS", supervisor.__file__, "sh", "-c", escaping],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
        )
        time.sleep(0.04 + 0.004 * round_)
        assert (process.communicate()[1], process.returncode) == (b"", -signal.SIGKILL)
        assert_none_works_in(tmp_path)


def test_a_failure_names_the_signal(fake_tool: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="was ended by signal SIGKILL"):
        VendorTools().run(["tool"], fake_tool("kill -9 $$"), tmp_path / "log")


def test_damaged_kernels_are_removed_and_the_tool_runs_once_more(
    fake_tool: Callable[[str], Path], tmp_path: Path
) -> None:
    """As the compiler behaves: it loads what is there, and never mends it."""
    folder = fake_tool(
        'test "$(cat "$PPL_CACHE_PATH/k.so" 2>&1)" = damaged && echo Bus error && exit 1\n'
        'echo kernel > "$PPL_CACHE_PATH/k.so"; echo "$PPL_CACHE_PATH"; cat "$PPL_CACHE_PATH/k.so"'
    )
    work = tmp_path / "work"
    cache = process.kernel_cache(work)
    assert cache.parent == work
    assert "1.2.3" in cache.name
    for content in (None, "kernel", "damaged"):
        if content:
            (cache / "k.so").write_text(content)
        printed = VendorTools().run(["tool"], folder, tmp_path / "log", work=work)
        assert [line.strip() for line in printed] == [str(cache), "kernel"]


def test_kernels_that_cannot_be_compiled_ask_for_compilers(
    fake_tool: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = fake_tool("echo x >> runs; echo run ppl_jit failed with ret 0x7f00!; exit 1")
    with pytest.raises(ToolError, match=r"gcc, g\+\+, cmake and make; make doctor"):
        VendorTools().run(["tool"], folder, tmp_path / "log", work=tmp_path / "work")
    assert (folder / "runs").read_text() == "x\nx\n"
    folder = fake_tool("echo x >> runs; echo it cannot be applied; exit 1")
    with pytest.raises(ToolError, match="applied"):
        VendorTools().run(["tool"], folder, tmp_path / "log", work=tmp_path / "work")
    assert (folder / "runs").read_text() == "x\nx\nx\n"


def test_a_huge_log_costs_no_memory(fake_tool: Callable[[str], Path], tmp_path: Path) -> None:
    """300 MB in one line."""
    folder = fake_tool("head -c 300000000 /dev/zero; echo; echo Error: the end; exit 1")
    tracemalloc.start()
    try:
        with pytest.raises(ToolError, match="Error: the end"):
            VendorTools().run(["tool"], folder, tmp_path / "log", work=tmp_path / "work")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("target", ["openvino", "bm1684x"])
def test_a_full_disk_leaves_no_artifact(pipeline: PrivatePipeline, target: str) -> None:
    """A limit on file size stands in for a full disk: both make a write fail part-way."""
    result = pipeline.run(
        *("--component", "vision_encoder", "--target", target),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "check free space" in result.stderr
    assert pipeline.manifests() == {}
    assert not list(pipeline.root.rglob("*.building-*"))


def working_in(folder: Path) -> list[int]:
    """Processes whose working directory lies in ``folder``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            where = (entry / "cwd").readlink()
        except OSError:
            continue
        if where.is_relative_to(folder):
            found.append(int(entry.name))
    return found


def assert_none_works_in(folder: Path) -> None:
    """Killed processes need a moment to disappear."""
    deadline = time.monotonic() + 2
    while working_in(folder):
        assert time.monotonic() < deadline, working_in(folder)
        time.sleep(0.02)


def wait_for_tool(pipeline: PrivatePipeline, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not working_in(pipeline.root / "work"):
        assert process.poll() is None, "it ended before any vendor tool ran"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_run_leaves_nothing_that_counts_and_the_next_one_succeeds(
    pipeline: PrivatePipeline,
) -> None:
    arguments = ("--component", SMALLEST, "--target", "bm1684x")
    command = pipeline.command(*arguments)
    root = Path(__file__).resolve().parent.parent
    ended = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
    wait_for_tool(pipeline, ended)
    ended.terminate()
    assert ended.wait(timeout=60) == 143
    assert_none_works_in(pipeline.root)
    assert pipeline.manifests() == {}

    killed = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
    wait_for_tool(pipeline, killed)
    killed.kill()
    killed.wait(timeout=60)
    assert_none_works_in(pipeline.root)
    assert pipeline.manifests() == {}

    result = pipeline.run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "1 built, 0 unchanged" in result.stderr
    assert not list(pipeline.root.rglob("*.building-*"))
    assert not list((pipeline.root / "work").glob("*_deploy"))
