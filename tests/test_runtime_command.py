"""The command line: results, tables, JSON lines, exit codes, and one-line errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from runtime.__main__ import main
from tests.runtime_support import IMAGES, ROOT


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, image in enumerate(IMAGES[:3]):
        image.save(folder / f"{index}.png")
    return folder


@pytest.fixture
def arguments(exported_artifacts: Path) -> list[str]:
    return ["--artifacts", str(exported_artifacts), "--target", "onnx", "--threads", "1"]


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_captions_as_json(pictures: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]):
    options = ["--json", "--num-beams", "2", "--num-return-sequences", "2", "--timing"]
    assert main(["caption", str(pictures), *arguments, *options]) == 0
    *records, timing = lines(capsys.readouterr().out)
    assert [Path(str(record["image"])).name for record in records] == ["0.png", "1.png", "2.png"]
    for record in records:
        assert record["text"]
        assert record["target"] == "onnx"
        assert len(record["alternatives"]) == 1
    assert {"preprocess", "vision", "first_pass", "step"} <= set(timing["timing_ms"])


def test_a_table_for_people_and_a_picture(
    pictures: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shown = tmp_path / "shown.png"
    options = ["--prompt", "a picture of", "--show", str(shown), "--timing"]
    assert main(["caption", str(pictures), *arguments, *options]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[0].split() == ["image", "result"]
    assert output.count("a picture of") == 3
    assert "per token" in output
    with Image.open(shown) as picture:
        assert picture.width > 1000


def test_a_bad_image_is_reported_and_skipped(
    pictures: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nope")
    names = [str(pictures / "0.png"), str(bad), str(tmp_path / "none.png"), str(pictures / "1.png")]
    assert main(["caption", *names, *arguments]) == 2
    result = capsys.readouterr()
    assert "0.png" in result.out
    assert "1.png" in result.out
    assert result.err.count("\n") == 2
    assert "bad.png: not an image" in result.err
    assert "none.png: no such file" in result.err
    assert main(["caption", *names, *arguments, "--json"]) == 2
    records = lines(capsys.readouterr().out)
    assert [("error" in record) for record in records].count(True) == 2


def test_a_checkpoint_of_drawn_scenes_says_so_once(
    pictures: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["caption", str(pictures), *arguments]) == 0
    note = "note: this checkpoint knows only drawn scenes of coloured shapes"
    assert capsys.readouterr().err.count(note) == 1


def test_questions(pictures: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]):
    asked = ["--question", "how many shapes?", "--question", "what is above?"]
    assert main(["vqa", str(pictures), *arguments, *asked, "--json"]) == 0
    records = lines(capsys.readouterr().out)
    assert len(records) == 6
    assert [record["question"] for record in records[:2]] == ["how many shapes?", "what is above?"]


def test_questions_line_by_line(
    pictures: Path,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    typed = tmp_path / "typed"
    typed.write_text("how many shapes?\n\n" + "what " * 5000 + "\nwhat is above?\n")
    with typed.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        code = main(["vqa", str(pictures / "0.png"), *arguments])
    result = capsys.readouterr()
    assert code == 2, "one question was too long"
    assert len(result.out.splitlines()) == 2
    assert len(result.err.splitlines()) == 1


def test_matching_and_ranking(
    pictures: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    texts = tmp_path / "texts.txt"
    texts.write_text("two blue rings\n\na red circle\n")
    options = ["--texts", str(texts), "--text", "a star", "--top-k", "1", "--json"]
    assert main(["match", str(pictures), *arguments, *options]) == 0
    records = lines(capsys.readouterr().out)
    assert len(records) == 9
    assert [record["rank"] for record in records[:3]] == [1, 2, 3]
    assert any(record["probability"] is None for record in records)


def test_comparing_targets(
    openvino_artifacts: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--artifacts", str(openvino_artifacts), "--compare", "onnx,openvino"]
    assert main(["caption", str(pictures), *options]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[:2] for row in rows[:2]] == [["0.png", "onnx"], ["0.png", "openvino"]]


def test_info(exported_artifacts: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["info", str(exported_artifacts), "--verify-digest", "--target", "onnx"]) == 0
    output = capsys.readouterr().out
    for expected in (
        "reference/caption",
        "reference/vqa",
        "reference/itm",
        "text_decoder",
        "torch",
    ):
        assert expected in output
    assert main(["info", str(exported_artifacts / "vqa"), "--json"]) == 0
    records = lines(capsys.readouterr().out)
    assert {"component", "nets", "files", "size_bytes", "tools"} <= set(records[0])


def test_info_says_what_fits_the_board(
    exported_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "caption"
    shutil.copytree(
        exported_artifacts / "caption", folder, ignore=shutil.ignore_patterns("openvino", "BM*")
    )
    for path in (folder / "onnx").glob("*.manifest.json"):
        manifest = json.loads(path.read_text())
        layout = {"npu": 6328, "vpu": 0, "vpp": 512}
        manifest.update(device_memory_bytes=2000 << 20, memory_layout_mib=layout)
        # A chip is whatever a manifest names.
        manifest.update(target="bm1700")
        path.write_text(json.dumps(manifest))
    for heap, expected in (
        (None, "fits the vendor's layout for BLIP: 6328 MiB"),
        ("7000", "fits the board's 7000 MiB"),
        ("4000", "memory_edit.sh -c -npu 6328 -vpu 0 -vpp 512"),
    ):
        options = [] if heap is None else ["--heap-mib", heap]
        assert main(["info", str(folder), *options]) == 0
        output = capsys.readouterr().out
        assert "6000 MiB" in output
        assert expected in output


def test_devices(capsys: pytest.CaptureFixture[str]):
    assert main(["devices", "--json"]) == 0
    targets = {record["target"] for record in lines(capsys.readouterr().out)}
    assert {"onnx", "openvino"} <= targets
    assert main(["devices"]) == 0


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["caption", "x.png", "--artifacts", "/nowhere"], 2, "/nowhere"),
        (["caption", "x.png", "--target", "bm9999"], 2, "bm9999"),
        (["caption", "x.png", "--device", "TPU", "--target", "openvino"], 1, "device TPU"),
        (["caption", "x.png", "--num-beams", "0"], 2, "num_beams"),
        (["caption", "x.png", "--threads", "0"], 2, "threads"),
        (["caption", "x.png", "--compare", ","], 2, "--compare"),
        (["match", "x.png"], 2, "--text"),
        (["match", "x.png", "--texts", "/nowhere.txt"], 2, "/nowhere.txt"),
        (["vqa", "x.png", "y.png"], 2, "--question"),
        (["info", "/nowhere"], 2, "/nowhere"),
    ],
)
def test_mistakes_are_one_line(
    openvino_artifacts: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    code: int,
    message: str,
):
    command = [str(pictures / "0.png") if word == "x.png" else word for word in command]
    if command[0] != "info" and "--artifacts" not in command:
        command += ["--artifacts", str(openvino_artifacts)]
    assert main(command) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_reader_may_go_away(pictures: Path, arguments: list[str]):
    command = [sys.executable, "-m", "runtime", "caption", str(pictures), *arguments, "--json"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read()
        process.wait(timeout=120)
    assert b"Traceback" not in error
    assert b"Exception" not in error


def test_even_an_unexpected_failure_is_one_line(
    pictures: Path,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("runtime.tasks.generating.generate", fail)
    command = ["caption", str(pictures / "0.png"), *arguments]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "unexpected RuntimeError: first" in error
    assert error.count("\n") == 1
    monkeypatch.setenv("BLIP_EDGE_DEBUG", "1")
    with pytest.raises(RuntimeError):
        main(command)
