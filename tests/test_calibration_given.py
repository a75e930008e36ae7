"""What users give for integers and get wrong: one line that says where, before any work."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compile.bmodel.integers.table_folder import check_tables
from compile.bmodel.integers.tables import expanded, modes_of, read_table
from compile.calibration.examples import check_examples, example_count, examples, examples_digest
from compile.calibration.given import GivenFiles
from configs.errors import BlipEdgeError, ConfigError, InputError
from configs.load import load_pipeline, load_target
from configs.schema import CalibrationConfig, Component, PipelineConfig, Task
from tests.compile_private import ROOT, private_pipeline
from tests.test_bmodel_integers import NET

GOOD = 'image,question\na.png,what color is it?\nb.png,"red, or blue?"\n'
TABLE = "itm_text_encoder_bm1684.quantize_table"
INTEGERS: set[tuple[Task, Component]] = {("itm", "text_encoder")}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((6, 9, 3), 80, np.uint8)).save(folder / name)
    (folder / "questions.csv").write_text(GOOD)
    return folder


def message(folder: Path, task: Task = "vqa") -> str:
    """The line that a build of integers ends with."""
    calibration = CalibrationConfig(source=str(folder), samples=2)
    with pytest.raises(InputError) as caught:
        check_examples(calibration, task, None)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.png,what?\n", "line 1: columns a.png,what?; the first line must name image,question"),
        ("image\na.png\n", "line 1: columns image; the first line must name image,question"),
        ("image,image,question\n", "line 1: columns image, image, question: 'image' is there"),
        ("image;question\na.png;what?\n", "line 1: fields are separated by semicolons"),
        ("image\tquestion\n", "line 1: fields are separated by tabs"),
        ("image,question\na.png,red, or blue?\n", "line 2: 3 fields, the first line has 2; put"),
        ("image,question\na.png\n", "line 2: 1 fields, the first line has 2"),
        ('image,question\n"a.png,what?\n', "line 2: unexpected end of data; check its quotes"),
        ("image,question\na.png, \n", "line 2: no question; write one"),
        ("image,question\n,what?\n", "line 2: no image; write its file name"),
        ("image,question\nc.png,what?\n", "line 2: no image 'c.png' in this folder; correct it"),
        ("image,question\n../photos/a.png,what?\n", "line 2: image '../photos/a.png' is a path"),
        ("image,question\n/a.png,what?\n", "line 2: image '/a.png' is a path; put the image"),
        (f'image,question\n"{"a" * 300}",what?\n', "line 2: no image 'aaaa"),
        (GOOD + "a.png,what color is it?\n", "line 4: the same as line 2; remove one"),
        ("image,question\n", "is empty; write lines below the first one"),
        ("", "is empty; give it columns image,question"),
    ],
)
def test_a_table_of_questions_that_cannot_be_used(photos: Path, text: str, expected: str) -> None:
    (photos / "questions.csv").write_text(text)
    found = message(photos)
    assert found.startswith(f"{photos / 'questions.csv'}: {expected}"), found


def test_questions_in_another_encoding_are_named_by_line(photos: Path) -> None:
    (photos / "questions.csv").write_bytes(GOOD.replace("red", "r\u00f6t").encode("latin-1"))
    assert "questions.csv: line 3: not UTF-8 text" in message(photos)
    (photos / "questions.csv").write_bytes(GOOD.encode("utf-16"))
    assert "questions.csv: line 1: not UTF-8 text" in message(photos)


@pytest.mark.parametrize(
    ("before", "after"),
    [("image", "\ufeffimage"), ("\n", "\r\n"), ("\n", "\r"), ("image,question", "Image, QUESTION")],
)
def test_what_spreadsheets_do_to_a_table_is_harmless(photos: Path, before: str, after: str) -> None:
    calibration = CalibrationConfig(source=str(photos), samples=2)
    expected = [(one.name, one.text) for one in examples(calibration, "vqa")]
    text = GOOD.replace(before, after)
    (photos / "questions.csv").write_bytes(text.encode())
    assert [(one.name, one.text) for one in examples(calibration, "vqa")] == expected
    assert expected[0][1] != expected[1][1]


def test_further_columns_are_passed_over(photos: Path) -> None:
    (photos / "questions.csv").write_text("answer,image,question\nred,a.png,what color is it?\n")
    (one,) = examples(CalibrationConfig(source=str(photos)), "vqa")
    assert (one.name, one.text) == ("a.png", "what color is it?")


def test_folders_that_cannot_be_used(photos: Path, tmp_path: Path) -> None:
    assert "no such folder; name a folder of images, or scenes" in message(tmp_path / "none")
    assert "not a folder" in message(photos / "a.png")
    (photos / "questions.csv").unlink()
    assert "questions.csv: missing; task vqa needs texts" in message(photos)
    (photos / "questions.csv").mkdir()
    assert "questions.csv: cannot be read (Is a directory)" in message(photos, "caption")
    (photos / "questions.csv").rmdir()
    # What only looks like a picture to its name.
    (photos / "c.jpg").mkdir()
    (photos / "._a.png").write_bytes(b"a note of another program")
    check_examples(CalibrationConfig(source=str(photos)), "caption", None)
    (photos / "d.jpg").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"d\.jpg: cannot be read \(No such file"):
        examples_digest(CalibrationConfig(source=str(photos)), None)
    for name in ("a.png", "b.png", "d.jpg"):
        (photos / name).unlink()
    assert "no images; put some there (.jpg, .jpeg" in message(photos)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_pictures_that_cannot_be_read(photos: Path, content: bytes | None) -> None:
    path = photos / "b.png"
    path.write_bytes(path.read_bytes()[:50] if content is None else content)
    assert f"not a readable image, replace or remove it: {path}: " in message(photos)


def test_a_picture_of_too_many_pixels_is_one_line(
    photos: Path, recwarn: pytest.WarningsRecorder
) -> None:
    Image.new("1", (12_000, 9_000)).save(photos / "b.png")
    assert "12000 x 9000 is more than 64000000 pixels; make it smaller" in message(photos)
    assert not recwarn.list


def test_questions_longer_than_the_net_and_too_few_pictures(
    exported_artifacts: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = private_pipeline(exported_artifacts, tmp_path, "vqa", "text_encoder")
    (pipeline.root / "vqa" / "processor").symlink_to(exported_artifacts / "vqa" / "processor")
    pipeline.data["calibration"] = {"source": str(photos), "samples": 9}
    pipeline.write()
    job = pipeline.job("text_encoder", "bm1684", "int8")
    work = pipeline.root / "work"
    GivenFiles().check_data(job, "vqa", keep=False)
    said = " ".join(capsys.readouterr().err.split())
    assert "calibration.samples: 9 given" in said
    assert "has 2 for vqa: all are used" in said
    assert not work.exists()
    GivenFiles().check_data(job, "vqa", keep=True)
    (read,) = work.glob("calibration_vqa_read.*")
    assert example_count(job.layout.pipeline.calibration, "vqa") == 2
    (photos / "questions.csv").write_text(GOOD + f"a.png,{'why ' * 40}\n")
    for keep in (False, True):
        with pytest.raises(InputError, match=r"questions\.csv: line 4: text of \d+ tokens, but"):
            GivenFiles().check_data(job, "vqa", keep=keep)
    assert list(work.glob("calibration_vqa_read.*")) == [read]


def tables(folder: Path, **files: str | bytes) -> PipelineConfig:
    """A pipeline of matching whose BM1684 takes these tables."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    pipeline = load_pipeline(ROOT / "configs" / "reference.yaml")
    chip = pipeline.targets["bm1684"].model_copy(update={"quantize_tables": str(folder)})
    changed = {"targets": {"bm1684": chip}, "tasks": {"itm": pipeline.tasks["itm"]}}
    return pipeline.model_copy(update=changed)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("itm_text_encodr_bm1684.quantize_table", TABLE),
        ("itm_text_encoder_bm1684_int8_1b.main.quantize_table", TABLE),
        ("itm_text_encoder_bm1684.quantize_table.txt", TABLE),
        ("itm_text_encoder_BM1684.quantize_table", TABLE),
        ("itm_text_encoder_bm1684.table", TABLE),
        ("vqa_text_decoder_bm1684.quantize_table", "vqa_text_decoder_step_bm1684.quantize_table"),
    ],
)
def test_a_table_that_no_net_would_ever_take(tmp_path: Path, name: str, meant: str) -> None:
    pipeline = tables(tmp_path / "t", **{TABLE: "* F32\n", name: "* F32\n"})
    with pytest.raises(ConfigError) as caught:
        check_tables(pipeline, load_target("bm1684"), INTEGERS)
    assert str(tmp_path / "t" / name) in str(caught.value)
    assert f"e.g. {meant}, or remove it" in str(caught.value)


def test_a_folder_may_serve_several_pipelines(tmp_path: Path) -> None:
    others = {
        "vqa_text_encoder_bm1684.quantize_table": "of another task",
        "itm_text_encoder_bm1688.quantize_table": "of another chip",
        "README.md": "what it is about",
        ".hidden.quantize_table": "",
    }
    pipeline = tables(tmp_path / "t", **others, **{TABLE: "* F32\n"})
    chip = load_target("bm1684")
    assert check_tables(pipeline, chip, INTEGERS) == []
    # One that nothing of this pipeline has a use for is told of.
    assert check_tables(pipeline, chip, set()) == [TABLE]
    with pytest.raises(ConfigError, match=r"has no table for bm1684, e\.g\. itm_vision_encoder_bm"):
        check_tables(tables(tmp_path / "t", **others), chip, INTEGERS)
    shutil.rmtree(tmp_path / "t")
    with pytest.raises(ConfigError, match=r"targets\.bm1684\.quantize_tables: .*no such folder"):
        check_tables(pipeline, chip, INTEGERS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("* F16\n", "line 1: '* F16': choose from F32, INT8"),
        ("# why\n* INT4\n", "line 2: '* INT4': choose from"),
        ("query\n", "line 1: 'query': give a name and one of F32, INT8"),
        ("a F32\nb F32\na INT8\n", "line 3: 'a INT8': line 1 gives the same name F32"),
        ("# nothing\n\n", "has no lines; write * INT8"),
        ("", "has no lines; write * INT8"),
        (b"\xff\xfe\x00", "cannot be read (invalid start byte); write a table as UTF-8 text"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str | bytes, expected: str) -> None:
    pipeline = tables(tmp_path / "t", **{TABLE: text})
    with pytest.raises(BlipEdgeError) as caught:
        check_tables(pipeline, load_target("bm1684"), INTEGERS)
    assert str(caught.value).startswith(f"{tmp_path / 't' / TABLE}: {expected}")
    assert caught.value.exit_code == 2


def test_a_table_as_editors_leave_it(tmp_path: Path) -> None:
    path = tmp_path / TABLE
    path.write_bytes("\ufeff# kept\r\n/layers.0/* f32 # measured\r\n".encode())
    (line,) = read_table(path, modes_of(load_target("bm1684")))
    assert (line.number, line.pattern, line.mode) == (2, "/layers.0/*", "F32")
    assert expanded(path, NET) == "/layers.0/query/Add_output_0_Add F32\n"


def test_a_line_that_later_ones_undo_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / TABLE
    path.write_text("/layers.0/query/* F32\n/layers.*/query/* INT8\n")
    with pytest.raises(ConfigError, match=r"line 1: .*F32: undone by line 2; put lines for few"):
        expanded(path, NET)


def test_tables_are_for_chips(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    text = (ROOT / "configs" / "reference.yaml").read_text()
    given = "openvino: {precisions: [f16, int8], quantize_tables: x}"
    path.write_text(text.replace("openvino: {precisions: [f16, int8]}", given))
    with pytest.raises(ConfigError, match=r"targets\.openvino\.quantize_tables: .*no SOPHON chip"):
        load_pipeline(path)
