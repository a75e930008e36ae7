"""The vendor's chip simulator, driven from Python: real compiler, real simulator, tiny nets."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.errors import ArtifactError, BackendError, InputError
from runtime.simulator.process import SimulatorProcess
from runtime.simulator.session import SimulatorSession, find_python

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = REPOSITORY / ".venv-tpu" / "bin"
#: chip -> (precision, allowed error relative to the output's range)
CHIPS = {"bm1684": ("F32", 1e-5), "bm1684x": ("F16", 5e-3), "bm1688": ("F16", 5e-3)}
SHAPE = (1, 5, 64)


def write_net(path: Path, seed: int) -> None:
    """``y = relu(x w + b) v`` with x ``[1, 5, 64]`` and y ``[1, 5, 32]``."""
    random = np.random.default_rng(seed)
    weights = {
        "w": random.normal(0, 0.1, (64, 48)),
        "b": random.normal(0, 0.1, (48,)),
        "v": random.normal(0, 0.1, (48, 32)),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["xw", "b"], ["xwb"]),
        helper.make_node("Relu", ["xwb"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(SHAPE))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, 32])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))


def tool(folder: Path, name: str, *arguments: str) -> None:
    done = subprocess.run([TOOLS / name, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@dataclass
class Tiny:
    folder: Path
    feed: np.ndarray

    def bmodel(self, name: str) -> Path:
        return self.folder / f"{name}.bmodel"

    def expected(self, net: str) -> np.ndarray:
        session = onnxruntime.InferenceSession(str(self.folder / f"{net}.onnx"))
        return session.run(None, {"x": self.feed})[0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")

    def deploy(net: str, chip: str, precision: str, name: str, *options: str) -> None:
        # The compiler finds weights beside itself only: its files go into its working directory.
        work = folder / f"work_{name}"
        shutil.copytree(folder / net, work)
        arguments = ["--mlir", f"{net}.mlir", "--quantize", precision, "--chip", chip]
        tool(work, "model_deploy", *arguments, "--model", f"{name}.bmodel", *options)
        (work / f"{name}.bmodel").rename(folder / f"{name}.bmodel")

    for seed, net in enumerate(("first", "second")):
        write_net(folder / f"{net}.onnx", seed)
        (folder / net).mkdir()
        arguments = ["--model_name", net, "--model_def", f"../{net}.onnx", "--mlir", f"{net}.mlir"]
        tool(folder / net, "model_transform", *arguments)
    for chip, (precision, _) in CHIPS.items():
        deploy("first", chip, precision, f"first_{chip}")
    deploy("second", "bm1688", "F16", "second_bm1688")
    deploy("first", "bm1688", "BF16", "bf16", "--quant_input", "--quant_output")
    parts = ["first_bm1688.bmodel", "second_bm1688.bmodel"]
    tool(folder, "model_tool", "--combine", *parts, "-o", "both.bmodel")
    feed = np.random.default_rng(7).normal(size=SHAPE).astype(np.float32)
    return Tiny(folder, feed)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual.astype(np.float64) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("chip", CHIPS)
def test_each_chip_computes_the_net(tiny: Tiny, chip: str) -> None:
    with SimulatorSession(tiny.bmodel(f"first_{chip}"), chip) as session:
        net = session.nets()["first"]
        assert [tensor.shape for tensor in net.inputs] == [SHAPE]
        by_index = session.run("first", [tiny.feed])
        by_name = session.run("first", {net.inputs[0].name: tiny.feed})
    (output,) = by_index.values()
    assert output.shape == (1, 5, 32)
    assert relative_error(output, tiny.expected("first")) <= CHIPS[chip][1]
    np.testing.assert_array_equal(output, next(iter(by_name.values())))


def test_the_vendors_own_runner_gives_the_same_bits(tiny: Tiny) -> None:
    np.savez(tiny.folder / "feed.npz", x=tiny.feed)
    arguments = ["--input", "feed.npz", "--model", "first_bm1684x.bmodel", "--output", "out.npz"]
    tool(tiny.folder, "model_runner", *arguments)
    (vendor,) = np.load(tiny.folder / "out.npz").values()
    with SimulatorSession(tiny.bmodel("first_bm1684x"), "bm1684x") as session:
        (ours,) = session.run("first", [tiny.feed]).values()
    np.testing.assert_array_equal(ours, vendor)


def test_our_waits_change_no_bit(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []
    for waits in ("ours", "vendor"):
        monkeypatch.setenv("BLIP_EDGE_SIMULATOR_WAITS", waits)
        with SimulatorSession(tiny.bmodel("first_bm1684"), "bm1684") as session:
            outputs += session.run("first", [tiny.feed]).values()
    np.testing.assert_array_equal(*outputs)


def test_several_nets_in_one_file(tiny: Tiny) -> None:
    with SimulatorSession(tiny.bmodel("both"), "bm1688") as session:
        assert set(session.nets()) == {"first", "second"}
        for net in ("first", "second", "first"):
            (output,) = session.run(net, [tiny.feed]).values()
            assert relative_error(output, tiny.expected(net)) <= CHIPS["bm1688"][1]


def test_all_chips_at_once(tiny: Tiny) -> None:
    expected = tiny.expected("first")
    errors: dict[str, float] = {}

    def work(chip: str, copy: int) -> None:
        with SimulatorSession(tiny.bmodel(f"first_{chip}"), chip) as session:
            for _ in range(5):
                (output,) = session.run("first", [tiny.feed]).values()
            errors[f"{chip} {copy}"] = relative_error(output, expected) / CHIPS[chip][1]

    jobs = [(chip, copy) for chip in CHIPS for copy in range(2)]
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == len(threads)
    assert max(errors.values()) <= 1


def test_bfloat16_borders_travel_as_bits(tiny: Tiny) -> None:
    with SimulatorSession(tiny.bmodel("bf16"), "bm1688") as session:
        assert session.nets()["first"].inputs[0].dtype == "bf16"
        (output,) = session.run("first", [tiny.feed]).values()
    assert output.dtype == np.uint16
    widened = (output.astype(np.uint32) << 16).view(np.float32)
    assert relative_error(widened, tiny.expected("first")) <= 3e-2


def test_wrong_feeds_are_refused_and_the_process_lives_on(tiny: Tiny) -> None:
    with SimulatorSession(tiny.bmodel("first_bm1688"), "bm1688") as session:
        session.run("first", [tiny.feed])
        process = session._worker.pid
        for feeds, message in (
            ([], "input 0 'x' is missing"),
            ([tiny.feed, tiny.feed], "no input '1'"),
            ({"z": tiny.feed}, "'x' is missing"),
            ([tiny.feed[:, :2]], r"shape \[1, 2, 64\], it must be \[1, 5, 64\]"),
        ):
            with pytest.raises(InputError, match=message):
                session.run("first", feeds)
        with pytest.raises(InputError, match="no net 'third'; there are: first"):
            session.run("third", [tiny.feed])
        session.run("first", [tiny.feed])
        assert session._worker.pid == process


def test_a_dead_process_is_an_error_and_the_next_call_starts_another(tiny: Tiny) -> None:
    with SimulatorSession(tiny.bmodel("first_bm1688"), "bm1688") as session:
        session.nets()
        os.kill(session._worker.pid, signal.SIGKILL)
        with pytest.raises(BackendError, match=r"killed by signal 9.*log: "):
            session.run("first", [tiny.feed])
        session.run("first", [tiny.feed])


def aborting(monkeypatch: pytest.MonkeyPatch, times: int, line: str) -> list[str]:
    """The process dies in its first calls, having printed a line; gives back the calls."""
    calls: list[str] = []
    request = SimulatorProcess.request

    def died(self: SimulatorProcess, net: str, *arguments: Any) -> list[np.ndarray]:
        calls.append(net)
        if len(calls) <= times:
            with self.log.open("a") as log:
                log.write(f"{line}\n/lib/libc.so.6(+0x1098ec)\n")
            os.kill(self.pid, signal.SIGKILL)
        return request(self, net, *arguments)

    monkeypatch.setattr(SimulatorProcess, "request", died)
    return calls


IN_USE = "ERROR: ASSERT cmodel_arch.cpp: SendMsg: 137: remain_wait_cnt == 0; msg id:33 is in use"


def test_a_message_in_use_is_named_and_the_call_is_run_once_more(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = aborting(monkeypatch, 1, IN_USE)
    with SimulatorSession(tiny.bmodel("first_bm1688"), "bm1688") as session:
        (output,) = session.run("first", [tiny.feed]).values()
    assert relative_error(output, tiny.expected("first")) < CHIPS["bm1688"][1]
    assert len(calls) == 2
    said = capsys.readouterr().err
    assert said.count("note:") == 1
    assert "msg id:33 is in use" in said
    assert "run once more" in said


@pytest.mark.parametrize(
    ("times", "line", "calls"), [(2, IN_USE, 2), (1, "ERROR: ASSERT cmodel.cpp: 7: a != b", 1)]
)
def test_other_aborts_and_a_second_one_are_errors_with_their_reason(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, times: int, line: str, calls: int
) -> None:
    made = aborting(monkeypatch, times, line)
    with (
        SimulatorSession(tiny.bmodel("first_bm1688"), "bm1688") as session,
        pytest.raises(BackendError) as caught,
    ):
        session.run("first", [tiny.feed])
    assert line in str(caught.value)
    assert len(made) == calls


def test_a_call_that_takes_too_long_ends_the_process(tiny: Tiny) -> None:
    with SimulatorSession(tiny.bmodel("first_bm1688"), "bm1688") as session:
        session.nets()
        os.kill(session._worker.pid, signal.SIGSTOP)
        with pytest.raises(BackendError, match=r"no answer in 0\.2 s"):
            session.run("first", [tiny.feed], timeout_seconds=0.2)
        session.run("first", [tiny.feed])


@pytest.mark.parametrize(
    ("content", "chip", "message"),
    [
        (b"not a BModel", "bm1684", "FATAL: File.* is broken"),
        (None, "bm1684x", r"arch\[BM1684X\] is not the same with bmodel arch\[BM1688\]"),
        (None, "bm1699", "no simulator for chip 'bm1699'; this tpu_mlir has .*bm1688"),
    ],
)
def test_a_file_that_cannot_be_loaded(
    tiny: Tiny, tmp_path: Path, content: bytes | None, chip: str, message: str
) -> None:
    path = tmp_path / "model.bmodel"
    path.write_bytes(content or tiny.bmodel("first_bm1688").read_bytes())
    session = SimulatorSession(path, chip, log_path=tmp_path / "log.txt")
    with pytest.raises(BackendError, match=message) as caught:
        session.nets()
    assert "\n" not in str(caught.value)


def test_missing_file_and_missing_interpreter(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        SimulatorSession(tmp_path / "none.bmodel", "bm1688")
    monkeypatch.setenv("BLIP_EDGE_TPU_PYTHON", str(tmp_path / "python"))
    with pytest.raises(BackendError, match="make setup-tpu"):
        find_python()
    with pytest.raises(BackendError, match="has no tpu_mlir"):
        SimulatorSession(tiny.bmodel("both"), "bm1688", python=sys.executable).nets()


def test_idle_processes_make_room(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_EDGE_SIMULATOR_WORKERS", "2")
    path = tiny.bmodel("first_bm1688")
    sessions = [SimulatorSession(path, "bm1688") for _ in range(3)]
    try:
        for session in (*sessions[:2], sessions[0], sessions[2]):
            session.run("first", [tiny.feed])
        assert [session._worker is not None for session in sessions] == [True, False, True]
        sessions[1].run("first", [tiny.feed])
        assert [session._worker is not None for session in sessions] == [False, True, True]
    finally:
        for session in sessions:
            session.close()


def test_no_process_outlives_its_parent(tiny: Tiny) -> None:
    program = (
        "import sys, time; from runtime.simulator.session import SimulatorSession as S; "
        f"s = S({str(tiny.bmodel('both'))!r}, 'bm1688'); s.nets(); "
        "print(s._worker.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while _running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _running(worker)


def _running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_a_clean_end_leaves_no_log_behind(tiny: Tiny) -> None:
    session = SimulatorSession(tiny.bmodel("first_bm1688"), "bm1688")
    session.nets()
    log = session._worker.log
    assert log.exists()
    session.close()
    assert not log.exists()
