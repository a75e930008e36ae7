"""What is wrong with one text is said in its place; the others are worked on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from runtime import BlipModel, Captioner, Matcher, QuestionAnswerer
from runtime.__main__ import main
from runtime.errors import ArtifactError, InputError
from runtime.generation.settings import TRUNCATED_TOKENS
from runtime.preprocessing.processor import TextTokenizer
from tests.runtime_support import IMAGES, THREADS, fixed_view, reference_tokenizer

LONG = "is there a ring " * 40 + "?"
GOOD = "what color is it?"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, image in zip("abc", IMAGES, strict=False):
        image.save(folder / f"{name}.png")
    return folder


@pytest.fixture
def backend(exported_artifacts: Path) -> list[str]:
    return ["--artifacts", str(exported_artifacts), "--target", "onnx", "--threads", "1"]


@pytest.fixture(scope="module")
def answerer(exported_artifacts: Path):
    with QuestionAnswerer.from_artifacts(
        exported_artifacts, target="onnx", threads=THREADS
    ) as task:
        yield task


def records(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# Tables, lists of texts, options


@pytest.mark.parametrize("more", [[], ["--batch", "1"]], ids=["batch", "one"])
@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        (["a.png," + GOOD, "b.png," + LONG, "c.png," + GOOD], ":3: question of 163 tokens"),
        (["a.png," + GOOD, "b.png,", "c.png," + GOOD], ":3: question is empty"),
        (["a.png," + GOOD, "b.png,  \udcff?", "c.png," + GOOD], ":3: text: .*Unicode"),
        (["a.png," + GOOD, "none.png," + GOOD, "c.png," + GOOD], "no such file"),
        (["a.png," + GOOD, "," + GOOD, "c.png," + GOOD], ":3: column 'image' is empty"),
        # Three questions about one image, which is worked on once.
        (["a.png," + GOOD, "a.png," + LONG, "a.png," + GOOD], ":3: question of 163 tokens"),
    ],
    ids=["long", "empty", "not Unicode", "no image", "no name", "one image"],
)
def test_a_row_of_a_table(
    pictures: Path,
    backend: list[str],
    capsys: pytest.CaptureFixture[str],
    rows: list[str],
    wrong: str,
    more: list[str],
):
    table = pictures / "asked.csv"
    content = "\n".join(["image,question", *rows, ""])
    table.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert main(["vqa", "--csv", str(table), "--json", *backend, *more]) == 2
    first, bad, last = records(capsys)
    assert first["text"]
    assert last["text"]
    assert re.search(wrong, str(bad["error"])), bad
    assert "\n" not in str(bad["error"])


def test_a_row_of_pairs_and_a_line_of_texts(
    pictures: Path, backend: list[str], capsys: pytest.CaptureFixture[str]
):
    table = pictures / "pairs.csv"
    table.write_text(f"image,text\na.png,a red square\nb.png,{LONG}\nc.png,a red square\n")
    assert main(["match", "--csv", str(table), "--json", *backend]) == 2
    first, bad, last = records(capsys)
    assert first["probability"] is not None
    assert last["probability"] is not None
    assert f"{table}:3: text of 163 tokens, this artifact takes 64" in str(bad["error"])
    assert bad["text"] == LONG
    texts = pictures / "texts.txt"
    texts.write_bytes(f"a red square\n\n{LONG}\na star\n\xff\n".encode("latin-1"))
    assert main(["match", str(pictures / "a.png"), "--texts", str(texts), *backend]) == 2
    printed = capsys.readouterr()
    assert [line.split()[-1] for line in printed.out.splitlines()[:1]] == ["result"]
    assert len(printed.out.splitlines()) == 2 + 2
    assert f"{texts}:3: text of 163 tokens" in printed.err
    assert f"{texts}:5: text: " in printed.err
    assert printed.err.count("\n") == 2


def test_a_question_among_two(
    pictures: Path, backend: list[str], capsys: pytest.CaptureFixture[str]
):
    asked = ["--question", LONG, "--question", GOOD]
    names = [str(pictures / "a.png"), str(pictures / "b.png")]
    assert main(["vqa", *names, *asked, "--json", *backend]) == 2
    bad, first, second = records(capsys)
    assert bad["question"] == LONG
    assert first["question"] == second["question"] == GOOD
    # Nothing is left to ask.
    for question in (LONG, ""):
        assert main(["vqa", *names, "--question", question, "--json", *backend]) == 2
        printed = capsys.readouterr()
        assert not printed.out
        assert printed.err.startswith("error: --question: question ")


def test_a_problem_is_said_once_for_all_targets(
    openvino_artifacts: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
):
    table = pictures / "asked.csv"
    table.write_text(f"image,question\na.png,{GOOD}\nb.png,{LONG}\n")
    command = ["vqa", "--csv", str(table), "--artifacts", str(openvino_artifacts)]
    assert main([*command, "--compare", "onnx,openvino"]) == 2
    assert capsys.readouterr().err.count("163 tokens") == 1


# Truncation


def test_truncation_is_that_of_blip(exported_artifacts: Path, tmp_path: Path):
    """As ``tokenizer(text, truncation=True, max_length=35)`` of the original code."""
    expected = {
        most: reference_tokenizer(exported_artifacts, "vqa")(
            LONG, truncation=True, max_length=most
        )["input_ids"]
        for most in (TRUNCATED_TOKENS, 32)
    }
    fixed = fixed_view(exported_artifacts, tmp_path / "fixed")
    options = {"target": "onnx", "threads": THREADS, "truncate": True}
    for folder, most in ((exported_artifacts, TRUNCATED_TOKENS), (fixed, 32)):
        with QuestionAnswerer.from_artifacts(folder, **options) as task:
            found = task.read_text(LONG)
            assert found.ids == expected[most]
            assert f"163 tokens was cut to {most}" in str(found.warning)
            assert task.read_text(GOOD).warning is None
            with pytest.warns(UserWarning, match="was cut"):
                cut = task(IMAGES[0], LONG)
            ids = np.array([expected[most]])
            direct = task.generate(task.preprocessor(IMAGES[:1]), ids)
            assert list(cut.token_ids) == direct[0].tolist()
    with Matcher.from_artifacts(exported_artifacts, **options) as matcher:
        with pytest.warns(UserWarning, match="was cut"):
            match = matcher(IMAGES[0], LONG)
        assert -1 <= match.cosine <= 1


def test_truncation_on_the_command_line(
    pictures: Path, backend: list[str], capsys: pytest.CaptureFixture[str]
):
    name = str(pictures / "a.png")
    assert main(["vqa", name, "--question", LONG, "--truncate", "--json", *backend]) == 0
    (found,) = records(capsys)
    assert found["warning"] == "question of 163 tokens was cut to 35"


# Unknown words


def test_a_question_of_unknown_words(
    pictures: Path,
    backend: list[str],
    answerer: QuestionAnswerer,
    capsys: pytest.CaptureFixture[str],
):
    asked = ["--question", "照片里有什么？", "--question", "照片 color"]
    assert main(["vqa", str(pictures / "a.png"), *asked, *backend]) == 0
    assert capsys.readouterr().err.count("no word that the vocabulary knows") == 1
    with pytest.warns(UserWarning, match="no word that the vocabulary knows"):
        answerer(IMAGES[0], "照片里有什么？")


@pytest.mark.parametrize("text", ["", "   ", "\t\n"])
def test_empty_texts_are_refused(answerer: QuestionAnswerer, text: str):
    with pytest.raises(InputError, match="question is empty"):
        answerer(IMAGES[0], text)


# Why a text ends


def test_a_text_says_why_it_ends(exported_artifacts: Path, tmp_path: Path):
    fixed = fixed_view(exported_artifacts, tmp_path / "fixed")
    for folder in (exported_artifacts, fixed):
        with Captioner.from_artifacts(folder, target="onnx", threads=THREADS) as captioner:
            for beams in (1, 2):
                whole = captioner(IMAGES[0], num_beams=beams, max_new_tokens=31)
                assert whole.finished == "end"
                assert whole.token_ids[-1] == captioner.manifest.text.end_token_id
                cut = captioner(IMAGES[0], num_beams=beams, max_new_tokens=4)
                assert (cut.finished, len(cut.token_ids)) == ("length", 5)
                assert cut.record()["finished"] == "length"
                most = captioner.session("text_decoder").capacity(
                    captioner.manifest.text.maximum_positions
                )
                full = captioner(
                    IMAGES[0], num_beams=beams, max_new_tokens=most + 9, min_new_tokens=most
                )
                assert (full.finished, len(full.token_ids)) == ("cache", most)
    assert most == 33


def test_people_are_told_of_cut_texts(
    pictures: Path, backend: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["caption", str(pictures / "a.png"), "--max-new-tokens", "4", *backend]) == 0
    assert "1 of 1 texts end at the length asked for" in capsys.readouterr().err


# Token ids from outside


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (np.full((2, 4), 10**6), None, "1000000 is outside 0.."),
        (np.full((2, 4), -7), None, "-7 is outside 0.."),
        (np.full((2, 4), 7.0), None, "dtype float64: pass integers"),
        (np.full(4, 7), None, r"shape \[4\]"),
        (np.full((1, 4), 7), None, "1 rows for 2 images"),
        (np.full((2, 4), 7), np.ones((2, 3)), r"attention_mask of shape \[2, 3\]"),
    ],
    ids=["beyond", "negative", "floats", "rank", "rows", "mask"],
)
def test_ids_are_compared_with_the_vocabulary(
    exported_artifacts: Path, ids: np.ndarray, mask: np.ndarray | None, message: str
):
    model = BlipModel.from_artifacts(exported_artifacts, target="onnx", threads=THREADS)
    pixels = model.captioner.preprocessor(IMAGES[:2])
    for call in (model.generate_caption, model.generate_answer):
        with pytest.raises(InputError, match=message):
            call(pixels, ids, mask)


def test_padding_on_either_side_is_left_out(exported_artifacts: Path):
    """A mask decides what is padding: ids under it may be anything."""
    with Captioner.from_artifacts(exported_artifacts, target="onnx", threads=THREADS) as captioner:
        pixels = captioner.preprocessor(IMAGES[:2])
        rows = [captioner.tokenizer.encode(text) for text in ("a picture of", "a")]
        alone = [captioner.generate(pixels[i : i + 1], [row])[0] for i, row in enumerate(rows)]
        width = max(map(len, rows))
        for fill in (0, -100):
            for left in (False, True):
                pads = [[fill] * (width - len(row)) for row in rows]
                ids = np.array([p + r if left else r + p for p, r in zip(pads, rows, strict=True)])
                found = captioner.generate_caption(pixels, ids, ids != fill)
                for row, expected in zip(found, alone, strict=True):
                    assert row[: len(expected)].tolist() == expected.tolist()
        free = captioner.generate_caption(pixels)
        assert captioner.generate_caption(pixels, np.zeros((2, 0), int)).tolist() == free.tolist()
        assert captioner.generate_caption(pixels, np.zeros((2, 3), int)).tolist() == free.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:0], "at least one image"),
        (lambda p: p[0], "pixel_values of shape"),
        (lambda p: p[:, :, :50], "pixel_values of shape"),
        (lambda p: p * np.nan, "not finite"),
    ],
    ids=["none", "rank", "cut", "NaN"],
)
def test_pixels_from_outside(answerer: QuestionAnswerer, change, message: str):
    pixels = answerer.preprocessor(IMAGES[:1])
    with pytest.raises(InputError, match=message):
        answerer.generate_answer(change(pixels), [answerer.tokenizer.question(GOOD)])


# A tokenizer that panics


def test_a_panic_of_the_tokenizer_is_one_line(
    exported_artifacts: Path,
    pictures: Path,
    backend: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    class PanicException(BaseException):
        """As the bindings of Rust raise it: no ``Exception``."""

    class Panicking:
        def encode(self, _text: object, **_options: bool):
            raise PanicException("index out of bounds\nat somewhere.rs")

        decode = encode

        def token_to_id(self, _token: str) -> None:
            return None

    with Captioner.from_artifacts(exported_artifacts, target="onnx") as captioner:
        tokenizer = captioner.tokenizer
    monkeypatch.setattr(tokenizer, "_tokenizer", Panicking())
    with pytest.raises(InputError, match=r"^text: index out of bounds; pass plain"):
        tokenizer.encode("a")
    with pytest.raises(ArtifactError, match="index out of bounds"):
        tokenizer.decode([7])

    def panic(*_: object) -> None:
        raise PanicException("first\nsecond")

    monkeypatch.setattr(TextTokenizer, "prompt", panic)
    assert main(["caption", str(pictures / "a.png"), *backend]) == 1
    assert capsys.readouterr().err.startswith("error: unexpected PanicException: first; ")
