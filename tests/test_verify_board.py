"""The board-test folder on the simulator, and the judge of what a board sends back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import InputError
from runtime.board_times import parsed
from verify.board.judge import failure, judge
from verify.board.results import LARGEST_BYTES

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def measured(
    reference_artifacts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A pipeline file, and the results of its folder for matching on BM1688."""
    folder = tmp_path_factory.mktemp("board")
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data["tasks"] = {"itm": data["tasks"]["itm"]}
    data["verify"]["component_scenes"] = 2
    data["verify"].pop("quality", None)
    for gate in data["verify"]["tokens"].values():
        gate["scenes"] = 4
    config = folder / "pipeline.yaml"
    config.write_text(yaml.safe_dump(data))

    def run(*arguments: str, cwd: Path = ROOT) -> None:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run("-m", "verify", "board-test", "--config", str(config), "--target", "bm1688")
    bundle = reference_artifacts / "board-test" / "bm1688_f16"
    # The folder is enough: nothing of the checkout is imported.
    tpu = ROOT / ".venv-tpu" / "bin" / "python"
    script = (
        f"import os, sys; os.environ['BLIP_EDGE_TPU_PYTHON'] = {str(tpu)!r}; "
        f"sys.path[0] = {str(bundle)!r}; from runtime.board_test import main; "
        f"sys.exit(main([{str(bundle)!r}, '--device', 'simulator', '--loops', '1']))"
    )
    run("-c", script, cwd=folder)
    return config, bundle / "results.json"


@pytest.fixture(scope="module")
def on_board(measured: tuple[Path, Path]) -> tuple[Path, Path]:
    """The same folder where sail and ``bmrt_test`` are installed: what stands in for them."""
    config, results = measured
    before = results.read_bytes()
    stand_in = ROOT / "tests" / "stand_in"
    environment = {
        **os.environ,
        "BLIP_EDGE_TPU_PYTHON": str(ROOT / ".venv-tpu" / "bin" / "python"),
        "PYTHONPATH": str(stand_in),
        "PATH": f"{stand_in}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["/bin/sh", "run.sh", "--loops", "2"],
        cwd=results.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = results.with_name("board.json")
    results.rename(found)
    results.write_bytes(before)
    return config, found


def test_a_board_shows_measured_beside_estimated(
    on_board: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, results = on_board
    assert failure(judge(config, results)) is None
    shown = capsys.readouterr().out
    assert "itm vision_encoder/main" in shown
    assert "itm answer 0" in shown
    recorded = json.loads((results.parents[2] / "verify-board-bm1688_f16.json").read_text())
    nets = {row["net"]: row for row in recorded["times"]["itm"]["nets"]}
    for row in nets.values():
        assert row["measured_ms"] > 0
        assert row["transfer_ms"] > 0
        assert row["estimated_ms"] > 0
        # The tool's medians over 19 loops; its cold loop takes 50 ms more.
        assert 2 <= row["bmrt_test_ms"] < 10
    for row in recorded["times"]["itm"]["answers"]:
        assert row["calls"]["vision_encoder/main"] == 1
        assert row["estimated_ms"] == pytest.approx(
            sum(count * nets[name]["estimated_ms"] for name, count in row["calls"].items())
        )
        assert row["host_ms"] < row["measured_ms"]
    lines = next(iter(recorded["bmrt_test_lines"]["itm"].values()))
    assert lines == ["[BMRT][bmrt_test:806] WARNING:setpriority failed, cpu time might flutuate."]


def test_times_are_medians_per_net_and_stage_without_the_cold_loop() -> None:
    printed = "".join(
        f"[BMRT] INFO:==> running network #{net}, name: net_{net}, loop: {loop}\n"
        + "".join(
            f"[BMRT] INFO:calculate  time(s): {seconds:.6f}\n"
            for seconds in ([0.9] * stages if loop == 0 else times[net][:stages])
        )
        for loop, times in enumerate([None, [[0.002], [0.003, 0.007]], [[0.004], [0.003, 0.008]]])
        for net, stages in ((0, 1), (1, 2))
    )
    found, lines = parsed(printed + "[BMRT] FATAL:\tsync failed\ncalculate time(s): soon\n")
    assert found == {"net_0": [3.0], "net_1": [3.0, 7.5]}
    assert lines == ["[BMRT] FATAL: sync failed", "calculate time(s): soon"]
    assert parsed("==> running network #0, name: n, loop: 0\ncalculate  time(s): 0.5\n") == (
        {"n": [500.0]},
        [],
    )


def changed(results: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    data = json.loads(results.read_text())
    change(data)
    path = folder / "changed.json"
    path.write_text(json.dumps(data))
    return path


def first_output(data: dict[str, Any], component: str) -> dict[str, Any]:
    case = data["tasks"]["itm"]["components"][component]["cases"][0]
    output: dict[str, Any] = next(iter(case["outputs"].values()))
    return output


def test_a_right_board_passes_with_its_latencies(measured: tuple[Path, Path]) -> None:
    config, results = measured
    checks = judge(config, results)
    assert failure(checks) is None
    assert [check.subject.component for check in checks] == [
        "vision_encoder",
        "text_encoder",
        "text_encoder_unimodal",
        "vision_projection",
        None,
    ]
    for check in checks[:-1]:
        assert 0 < check.metrics["relative_error"] < check.tolerance["max_relative_error"]
        assert check.metrics["latency_ms"]["main"] > 0
    assert checks[-1].metrics["exact_match_rate"] == 1.0
    assert (results.parents[2] / "verify-board-bm1688_f16.json").is_file()


def test_a_folder_without_its_board_says_what_is_missing(
    measured: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = measured[1].parent
    before = measured[1].read_bytes()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*command: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**environment, "PATH": path},
        )

    # By default a board, never the simulator: its milliseconds would be taken for a board's.
    done = run(sys.executable, "-m", "runtime.board_test", ".")
    assert done.returncode == 1
    assert "sophon-sail is not installed" in done.stderr
    bare = tmp_path / "python3"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    done = run("sh", "run.sh", path=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert "pip install -r requirements.txt" in done.stderr
    assert (folder / "requirements.txt").is_file()
    # pip evaluates markers on the host: the wheels for the board are named without them.
    pins = "numpy==1.24.4 pillow==10.4.0 tokenizers==0.20.3\n"
    assert f"--python-version 3.8 --only-binary=:all: {pins}" in (folder / "README.txt").read_text()
    assert measured[1].read_bytes() == before
    assert json.loads(before)["device"] == "simulator"


def wrong_values(data: dict[str, Any]) -> None:
    output = first_output(data, "text_encoder_unimodal")
    output["max_abs"] = output["scale"]


def wrong_direction(data: dict[str, Any]) -> None:
    output = first_output(data, "vision_encoder")
    output["product"] = 0.5 * output["product"]


def impossible_product(data: dict[str, Any]) -> None:
    output = first_output(data, "vision_encoder")
    output["product"] = 9 * output["product"]


def nothing_compared(data: dict[str, Any]) -> None:
    first_output(data, "vision_projection")["elements"] = 0


def other_answer(data: dict[str, Any]) -> None:
    answer = data["tasks"]["itm"]["answers"][0]
    answer["probability"] = 1.0 - answer["probability"]


def case_left_out(data: dict[str, Any]) -> None:
    data["tasks"]["itm"]["components"]["text_encoder"]["cases"].pop()


def larger_scale(data: dict[str, Any]) -> None:
    output = first_output(data, "vision_encoder")
    output["scale"] *= 100


def smaller_error(data: dict[str, Any]) -> None:
    output = first_output(data, "vision_encoder")
    output["max_abs"] /= 1000


def perfect_square(data: dict[str, Any]) -> None:
    output = first_output(data, "vision_encoder")
    output["reference_square"] = output["square"] = output["product"] = 1.0


def fewer_elements(data: dict[str, Any]) -> None:
    first_output(data, "vision_encoder")["elements"] //= 2


@pytest.mark.parametrize(
    "change",
    [
        *(wrong_values, wrong_direction, impossible_product, nothing_compared),
        *(other_answer, case_left_out),
        *(larger_scale, smaller_error, perfect_square, fewer_elements),
    ],
)
def test_wrong_figures_fail(
    measured: tuple[Path, Path], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    config, results = measured
    checks = judge(config, changed(results, tmp_path, change))
    error = failure(checks)
    assert error is not None
    assert error.exit_code == 1
    assert len([check for check in checks if not check.passed]) == 1


def other_artifact(data: dict[str, Any]) -> None:
    data["tasks"]["itm"]["components"]["vision_encoder"]["key"] = "0" * 64


def other_folder(data: dict[str, Any]) -> None:
    data["bundle_sha256"] = "0" * 64


def infinite(data: dict[str, Any]) -> None:
    first_output(data, "vision_encoder")["scale"] = float("inf")


def negative(data: dict[str, Any]) -> None:
    first_output(data, "vision_encoder")["max_abs"] = -1.0


def surplus(data: dict[str, Any]) -> None:
    data["command"] = "rm"


def component_missing(data: dict[str, Any]) -> None:
    del data["tasks"]["itm"]["components"]["vision_encoder"]


def other_target(data: dict[str, Any]) -> None:
    data["target"] = "../../etc"


def many_lines(data: dict[str, Any]) -> None:
    data["tasks"]["itm"]["components"]["a\nb\x1b[2J"] = {}


def problem_of_lines(data: dict[str, Any]) -> None:
    first_output(data, "vision_encoder")["problem"] = "all\nright"


def not_a_number(data: dict[str, Any]) -> None:
    first_output(data, "vision_encoder")["product"] = float("nan")


def text_for_number(data: dict[str, Any]) -> None:
    first_output(data, "vision_encoder")["max_abs"] = "0"


def no_probability(data: dict[str, Any]) -> None:
    data["tasks"]["itm"]["answers"][0]["probability"] = 7.0


def task_missing(data: dict[str, Any]) -> None:
    data["tasks"] = {}


@pytest.mark.parametrize(
    "change",
    [
        *(other_artifact, other_folder, infinite, negative, surplus, component_missing),
        *(other_target, many_lines, problem_of_lines, not_a_number, no_probability, task_missing),
        text_for_number,
    ],
)
def test_foreign_and_hostile_results_are_refused(
    measured: tuple[Path, Path], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    config, results = measured
    with pytest.raises(InputError) as caught:
        judge(config, changed(results, tmp_path, change))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_what_is_no_results_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(InputError):
        judge(ROOT / "configs" / "reference.yaml", path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with path.open("wb") as stream:
        stream.truncate(LARGEST_BYTES + 1)
    with pytest.raises(InputError, match="no results file"):
        judge(ROOT / "configs" / "reference.yaml", path)
