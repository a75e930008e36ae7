"""Options: one that would do nothing is refused, and every one does what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.__main__ import main
from tests.runtime_support import IMAGES


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for index, image in enumerate(IMAGES[:3]):
        image.save(folder / f"{index}.png")
    return [str(folder / f"{index}.png") for index in range(3)]


@pytest.fixture
def backend(exported_artifacts: Path) -> list[str]:
    return ["--artifacts", str(exported_artifacts), "--target", "onnx", "--threads", "1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-p", "0.5"], "--top-p: does nothing without --do-sample"),
        (["--top-k", "5"], "--top-k: does nothing without --do-sample"),
        (["--temperature", "3"], "--temperature: does nothing without --do-sample"),
        (["--seed", "1", "--num-beams", "2"], "--seed: does nothing without --do-sample"),
        (["--length-penalty", "2"], "--length-penalty: does nothing without --num-beams"),
        (["--early-stopping", "true"], "--early-stopping: does nothing without --num-beams"),
        (["--early-stopping", "true", "--num-beams", "1"], "without --num-beams"),
        (["--max-length", "9", "--max-new-tokens", "9"], "beside --max-new-tokens"),
        (["--target", "onnx", "--mode", "fast"], "--mode: does nothing on onnx"),
        (["--target", "onnx", "--performance-hint", "latency"], "--performance-hint: does"),
        (["--target", "bm1684x", "--cache", "here"], "--cache: does nothing on bm1684x"),
        (["--target", "onnx", "--no-cache"], "--no-cache: does nothing on onnx"),
        (["--target", "bm1684x", "--threads", "2"], "--threads: does nothing on bm1684x"),
        (["--compare", "onnx,bm1684x", "--mode", "fast"], "--mode: does nothing on onnx, bm"),
        (["--compare", "onnx,openvino", "--target", "onnx"], "--target: does nothing beside"),
        (["--cache", "here", "--no-cache"], "--cache: does nothing beside --no-cache"),
        (["--rehash", "--no-verify-digest"], "--rehash: does nothing beside"),
        (["--show", "/nowhere/x.png"], "--show /nowhere/x.png: name a file in a folder"),
        (["--show", "x.what"], "--show x.what: no kind of picture"),
    ],
)
def test_options_that_do_nothing_are_refused_first(
    pictures: list[str], capsys: pytest.CaptureFixture[str], options: list[str], message: str
):
    """Nothing is looked for, let alone loaded: there are no such artifacts."""
    assert main(["caption", pictures[0], "--artifacts", "/nowhere", *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_alternatives_are_printed(
    pictures: list[str], backend: list[str], capsys: pytest.CaptureFixture[str]
):
    options = ["--num-beams", "3", "--num-return-sequences", "3"]
    assert main(["caption", pictures[0], *options, "--json", *backend]) == 0
    record = json.loads(capsys.readouterr().out)
    wanted = [record["text"], *(one["text"] for one in record["alternatives"])]
    assert all(one["finished"] in ("end", "length") for one in record["alternatives"])
    assert main(["caption", pictures[0], *options, *backend]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("  ", 1)[1].strip() for row in rows] == wanted
    assert len(set(wanted)) == 3


def test_one_text_sorts_the_images(
    pictures: list[str], backend: list[str], capsys: pytest.CaptureFixture[str]
):
    text = "two blue rings"
    assert main(["match", *pictures, "--text", text, "--json", *backend]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["rank"] for record in found] == [1, 2, 3]
    scores = [record["probability"] for record in found]
    assert scores == sorted(scores, reverse=True)
    assert len({record["image"] for record in found}) == 3
    assert main(["match", *pictures, "--text", text, "--top-k", "0", *backend]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("#")[1][0] for row in rows] == ["1", "2", "3"]
    cosines = [float(row.rsplit(" ", 1)[1]) for row in rows]
    assert cosines == sorted(cosines, reverse=True)


def test_an_image_named_twice_and_a_header_in_capitals(
    pictures: list[str], backend: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["caption", pictures[0], pictures[0], "--json", *backend]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    table = tmp_path / "upper.csv"
    table.write_text(f"Image,Question\n{pictures[0]},how many?\n")
    assert main(["vqa", "--csv", str(table), "--json", *backend]) == 0
    assert json.loads(capsys.readouterr().out)["text"]
