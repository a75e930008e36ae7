"""The one ``--device`` option: what may be named, what there is, what AUTO falls back to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime import Captioner
from runtime.__main__ import main
from runtime.errors import BackendError, InputError
from runtime.sessions.openvino_models import (
    check_arithmetic,
    openvino_device,
    real_devices,
    shared_core,
)
from runtime.sessions.session import SessionOptions
from runtime.tasks.artifacts import check_device
from tests.runtime_support import IMAGES, THREADS

SEVERAL = ["CPU", "GPU.0", "GPU.1", "NPU"]


@pytest.mark.parametrize(
    ("asked", "available", "found"),
    [
        (None, ["CPU"], "CPU"),
        ("cpu", ["CPU"], "CPU"),
        ("auto", ["CPU"], "AUTO"),
        ("AUTO:GPU,CPU", ["CPU"], "AUTO:CPU"),
        ("AUTO:GPU,CPU", SEVERAL, "AUTO:GPU,CPU"),
        ("AUTO:-NPU", ["CPU"], "AUTO:-NPU"),
        ("GPU", SEVERAL, "GPU"),
        ("gpu.1", SEVERAL, "GPU.1"),
        ("MULTI:GPU.0,CPU", SEVERAL, "MULTI:GPU.0,CPU"),
    ],
)
def test_names(asked: str | None, available: list[str], found: str):
    assert openvino_device(asked, available) == found


@pytest.mark.parametrize(
    ("asked", "available"),
    [
        ("GPU", ["CPU"]),
        ("GPU.2", SEVERAL),
        ("NPU", ["CPU", "GPU"]),
        ("TPU", SEVERAL),
        ("AUTO:GPU", ["CPU"]),
        ("MULTI:GPU,CPU", ["CPU"]),
    ],
)
def test_a_device_that_is_not_here(asked: str, available: list[str]):
    with pytest.raises(BackendError, match="not found; there is: CPU") as found:
        openvino_device(asked, available)
    assert "AUTO" in str(found.value)


def test_where_a_choice_may_end():
    assert real_devices("AUTO", SEVERAL) == SEVERAL
    assert real_devices("AUTO:-NPU", SEVERAL) == SEVERAL[:-1]
    assert real_devices("AUTO:GPU,CPU(2)", SEVERAL) == ["GPU", "CPU"]
    assert real_devices("CPU", SEVERAL) == ["CPU"]


@pytest.mark.parametrize(
    ("target", "device", "fitting"),
    [
        ("openvino", "AUTO", True),
        ("openvino", "0", False),
        ("openvino", "simulator", False),
        ("onnx", "cpu", True),
        ("onnx", "GPU", False),
        ("bm1684x", "0", True),
        ("bm1684x", "simulator", True),
        ("bm1684x", "CPU", False),
        ("bm1684x", None, True),
    ],
)
def test_a_device_belongs_to_a_kind_of_target(target: str, device: str | None, fitting: bool):
    if fitting:
        check_device(target, device)
        return
    with pytest.raises(InputError, match=f"device {device}: target {target} runs on"):
        check_device(target, device)


class HalfOnly:
    """A core whose one device computes in half precision only, as NPUs do."""

    available_devices = ("NPU",)

    def get_property(self, _device: str, _name: str) -> list[str]:
        return ["FP16", "INT8", "EXPORT_IMPORT"]


def test_exact_needs_float32():
    check_arithmetic(HalfOnly(), "NPU", SessionOptions(mode="fast"))
    with pytest.raises(BackendError, match="does not compute in float32; use --mode fast"):
        check_arithmetic(HalfOnly(), "NPU", SessionOptions())
    check_arithmetic(shared_core(), "AUTO", SessionOptions())


def test_auto_gives_the_answers_of_the_cpu(openvino_artifacts: Path):
    with Captioner.from_artifacts(openvino_artifacts, threads=THREADS) as captioner:
        expected = captioner.batch(IMAGES[:2])
    with Captioner.from_artifacts(openvino_artifacts, device="AUTO") as captioner:
        assert captioner.batch(IMAGES[:2]) == expected


def test_the_list_names_every_device_and_auto(capsys: pytest.CaptureFixture[str]):
    assert main(["devices", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    openvino = {
        record["device"]: record["detail"] for record in found if "openvino" in record["target"]
    }
    assert set(shared_core().available_devices) | {"AUTO"} == set(openvino)
    assert "exact: f32" in openvino["CPU"]
    assert "fast: " in openvino["CPU"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--device", "GPU.7"], 1, "device GPU.7: not found; there is: CPU"),
        (["--device", "0"], 2, "device 0: target openvino runs on"),
        (["--device", "GPU", "--target", "onnx"], 2, "device GPU: target onnx runs on CPU"),
        (["--device", "3", "--compare", "onnx,openvino"], 2, "device 3: target onnx"),
        (["--batch", "0"], 2, "batch 0"),
    ],
)
def test_mistakes(
    openvino_artifacts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    message: str,
):
    image = tmp_path / "scene.png"
    IMAGES[0].save(image)
    assert main(["caption", str(image), "--artifacts", str(openvino_artifacts), *options]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_compared_targets_take_the_device_that_is_theirs(
    openvino_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    image = tmp_path / "scene.png"
    IMAGES[0].save(image)
    options = ["--artifacts", str(openvino_artifacts), "--compare", "onnx,openvino"]
    assert main(["caption", str(image), *options, "--device", "AUTO"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
