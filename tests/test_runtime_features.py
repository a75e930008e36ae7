"""The command line: prompts per image, sidecars, scores, answers, features, standard input."""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime.__main__ import main
from runtime.cli import inputs
from runtime.cli.options import build_parser
from tests.runtime_support import IMAGES, ROOT

TEXTS = ["--text", "two blue rings", "--text", "a ring"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, image in enumerate(IMAGES[:3]):
        image.save(folder / f"{index}.png")
    return folder


@pytest.fixture
def backend(exported_artifacts: Path) -> list[str]:
    return ["--artifacts", str(exported_artifacts), "--target", "onnx", "--threads", "1"]


def records(capsys: Capture) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_version_and_help(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"blip-edge {runtime.__version__}"
    assert main([]) == 2
    assert "caption" in capsys.readouterr().out
    choices = build_parser("")._subparsers._group_actions[0].choices
    for name, command in choices.items():
        for action in command._actions:
            assert action.help or action.choices, (name, action.dest)
        assert command.format_help()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, capsys: Capture) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert ("bashcompinit" in script) == (shell == "zsh")
    asked = {
        "vq": "vqa",
        "caption --no-rep": "--no-repeat-ngram-size",
        "caption --mode f": "fast",
        "completion z": "zsh",
        "match pyproj": "pyproject.toml",
    }
    lines = [
        f"COMP_WORDS=(blip-edge {words}); COMP_CWORD={len(words.split())}; _blip_edge; "
        'echo "${COMPREPLY[@]}"'
        for words in asked
    ]
    program = "\n".join([script if shell == "bash" else script.split("bashcompinit\n")[1], *lines])
    found = subprocess.run(
        ["/bin/bash", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == list(asked.values())


def test_prompts_per_image(pictures: Path, backend: list[str], capsys: Capture) -> None:
    table, lines = pictures / "prompts.csv", pictures / "prompts.txt"
    table.write_text("image,prompt\n0.png,a picture of\n1.png,\n1.png,two\n")
    assert main(["caption", "--csv", str(table), "--json", *backend]) == 0
    rows = records(capsys)
    assert [row["prompt"] for row in rows] == ["a picture of", "", "two"]
    assert [row["text"].startswith(row["prompt"]) for row in rows] == [True] * 3
    lines.write_text("a picture of\n\ntwo\n")
    assert main(["caption", str(pictures), "--prompt-file", str(lines), "--json", *backend]) == 0
    assert [row["prompt"] for row in records(capsys)] == ["a picture of", "", "two"]
    lines.write_text("a\n")
    assert main(["caption", str(pictures), "--prompt-file", str(lines), *backend]) == 2
    assert "1 lines for 3 images" in capsys.readouterr().err


def test_an_image_from_standard_input(
    pictures: Path, backend: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (pictures / "0.png").read_bytes()
    shown = pictures / "shown.png"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    inputs._standard_input.cache_clear()
    options = ["--json", "--show", str(shown), *backend]
    assert main(["caption", "-", str(pictures / "0.png"), *options]) == 0
    piped, named = records(capsys)
    assert piped["image"] == "-"
    assert piped["token_ids"] == named["token_ids"]
    assert shown.is_file()
    assert main(["vqa", "-", *backend]) == 2
    assert "give --question" in capsys.readouterr().err
    inputs._standard_input.cache_clear()


def test_captions_beside_the_images(pictures: Path, backend: list[str], capsys: Capture) -> None:
    (pictures / "1.txt").write_text("mine\n")
    options = ["--sidecar", "txt", "--prefix", "sks, ", "--suffix", ", photo é", *backend]
    assert main(["caption", str(pictures), *options, "--json"]) == 0
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["0.png", "2.png"]
    assert "1 of 3 images have their .txt file" in printed.err
    for row in rows:
        beside = Path(row["image"]).with_suffix(".txt").read_text(encoding="utf-8")
        assert beside == f"sks, {row['text']}, photo é\n"
    assert (pictures / "1.txt").read_text() == "mine\n"
    assert main(["caption", str(pictures), *options]) == 0
    assert "3 of 3" in capsys.readouterr().err
    assert main(["caption", str(pictures), *options, "--existing", "overwrite"]) == 0
    assert "sks" in (pictures / "1.txt").read_text()
    assert sorted(path.suffix for path in pictures.iterdir()) == [".png"] * 3 + [".txt"] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sidecar", "png"], "ending of a text file"),
        (["--sidecar", "../x"], "ending of a text file"),
        (["--prefix", "a"], "belong to --sidecar"),
        (["--sidecar", "txt", "--compare", "onnx,openvino"], "--sidecar: does nothing beside"),
        (["--font", "x.ttf"], "--font: does nothing without --show"),
        (["--show", "x.png", "--font", "/nowhere/x.ttf"], "--font /nowhere/x.ttf"),
        (["--bad-words", "red", "--suppress-tokens", "-1"], "suppress_tokens"),
    ],
)
def test_what_does_nothing_is_refused(
    pictures: Path, capsys: Capture, options: list[str], message: str
) -> None:
    assert main(["caption", str(pictures), "--artifacts", "/nowhere", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_sidecar_is_of_one_image_and_stays_in_its_folder(pictures: Path, capsys: Capture) -> None:
    shutil.copy(pictures / "0.png", pictures / "0.jpg")
    assert main(["caption", str(pictures), "--sidecar", "txt", "--artifacts", "/nowhere"]) == 2
    assert "would get two captions" in capsys.readouterr().err
    inside = pictures / "inside"
    inside.mkdir()
    table = inside / "t.csv"
    table.write_text("image,prompt\n../0.png,\n")
    assert main(["caption", "--csv", str(table), "--sidecar", "txt", "--artifacts", "/no"]) == 2
    assert "outside" in capsys.readouterr().err


def test_confidence_scores_and_forbidden_words(
    pictures: Path, backend: list[str], capsys: Capture
) -> None:
    image = str(pictures / "0.png")
    assert main(["caption", image, "--confidence", *backend]) == 0
    assert "  confidence 0." in capsys.readouterr().out
    captions = ["--score", "a red star", "--score", "a white ring left of two blue rings"]
    assert main(["caption", image, *captions, "--json", *backend]) == 0
    best, other = records(capsys)
    assert (best["rank"], other["rank"]) == (1, 2)
    assert (best["text"], other["text"]) == (captions[3], captions[1])
    assert best["confidence"] > other["confidence"]
    assert main(["caption", image, "--bad-words", "ring", "--json", *backend]) == 0
    (found,) = records(capsys)
    assert "ring" not in found["text"].split()


def test_choosing_among_answers(
    pictures: Path, backend: list[str], tmp_path: Path, capsys: Capture
) -> None:
    answers = tmp_path / "answers.txt"
    answers.write_text("red\n\nblue\nwhite\n")
    asked = ["vqa", str(pictures / "0.png"), "--question", "what color is the circle?", *backend]
    options = ["--answers", str(answers), "--num-return-sequences", "3"]
    assert main([*asked, *options, "--json"]) == 0
    (row,) = records(capsys)
    found = [row, *row["alternatives"]]
    assert {one["text"] for one in found} == {"red", "blue", "white"}
    assert sorted((one["score"] for one in found), reverse=True) == [one["score"] for one in found]
    assert main([*asked, "--answer-candidates", "3"]) == 2
    assert "--answers" in capsys.readouterr().err


def test_features_are_kept_and_searched(
    pictures: Path, backend: list[str], capsys: Capture
) -> None:
    bad = pictures / "bad.png"
    bad.write_bytes(b"nope")
    kept = pictures / "features.npz"
    assert main(["match", str(pictures), "--save", str(kept), "--json", *backend]) == 2
    (problem,) = records(capsys)
    assert (problem["target"], problem["image"]) == ("onnx", str(bad))
    bad.unlink()
    assert main(["match", "--load", str(kept), *TEXTS, "--top-k", "2", "--json", *backend]) == 0
    found = records(capsys)
    assert [row["rank"] for row in found] == [1, 2, 1, 2]
    assert main(["match", str(pictures), *TEXTS, "--per-text", "--rank-by", "itc", *backend]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    names = [Path(str(row["image"])).name for row in found]
    assert [rows[at][0] for at in (0, 1, 3, 4)] == names
    assert all(row[-3] == "-" for row in rows), "the head was not asked"
    # Another number of texts at once may round differently.
    low = str(found[1]["cosine"] - 1e-5)
    searched = ["match", "--load", str(kept), *TEXTS[:2], "--threshold", low, *backend]
    assert main([*searched, "--rank-by", "itc"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["match", "--load", str(kept), str(pictures), *TEXTS, *backend]) == 2
    assert "leave out image names" in capsys.readouterr().err


def test_thresholds(pictures: Path, backend: list[str], capsys: Capture) -> None:
    given = ["match", str(pictures), *TEXTS, "--json", *backend]
    for by, field in (("itm", "probability"), ("itc", "cosine"), ("sum", "score")):
        assert main([*given, "--rank-by", by]) == 0
        every = [row[field] for row in records(capsys)]
        limit = sorted(every)[2]
        assert main([*given, "--rank-by", by, "--threshold", repr(limit)]) == 0
        kept = [row[field] for row in records(capsys)]
        assert sorted(kept) == sorted(one for one in every if one >= limit)
        assert len(kept) == len(every) - 2


def test_rows_can_be_joined(pictures: Path, backend: list[str], capsys: Capture) -> None:
    """Every question has a row of each image, its error included, in plain UTF-8."""
    (pictures / "1.png").write_bytes(b"nope")
    asked = ["--question", "wie groß?", "--question", "how many?"]
    assert main(["vqa", str(pictures), *asked, "--json", *backend]) == 2
    printed = capsys.readouterr().out
    assert "wie groß?" in printed
    rows = [json.loads(line) for line in printed.splitlines()]
    keys = [(Path(row["image"]).name, row["question"], row["target"]) for row in rows]
    names = ["0.png", "1.png", "2.png"]
    assert keys == [(name, text, "onnx") for name in names for text in asked[1::2]]
    assert [("error" in row) for row in rows] == [False, False, True, True, False, False]


def test_json_is_escaped_where_output_is_not_utf8(pictures: Path, exported_artifacts: Path) -> None:
    image = shutil.copy(pictures / "0.png", pictures / "写真.png")
    command = [sys.executable, "-m", "runtime", "caption", str(image), "--target", "onnx"]
    command += ["--artifacts", str(exported_artifacts)]
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PATH": ""}
    for options, wanted in ((["--json"], "\\u5199\\u771f"), ([], "\\u5199\\u771f.png")):
        found = subprocess.run(
            [*command, *options], cwd=ROOT, env=environment, capture_output=True, check=True
        )
        assert wanted in found.stdout.decode("ascii")


def test_the_only_target_there_is_taken(
    exported_artifacts: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    ignored = shutil.ignore_patterns("openvino", "BM*")
    shutil.copytree(exported_artifacts / "caption", tmp_path / "caption", ignore=ignored)
    assert main(["caption", str(pictures / "0.png"), "--artifacts", str(tmp_path), "--json"]) == 0
    assert records(capsys)[0]["target"] == "onnx"
    with runtime.Captioner.from_artifacts(tmp_path) as captioner:
        assert captioner.artifacts.target == "onnx"


def test_a_font_is_used(pictures: Path, backend: list[str], capsys: Capture) -> None:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawn = []
    for name in ("DejaVuSans.ttf", "DejaVuSerif.ttf"):
        shown = pictures / f"{name}.jpg"
        options = ["--show", str(shown), "--font", str(folder / name), *backend]
        assert main(["caption", str(pictures / "0.png"), *options]) == 0
        drawn.append(shown.read_bytes())
    assert drawn[0] != drawn[1]
    capsys.readouterr()


def test_choices_of_rankings_are_those_of_matching() -> None:
    from runtime.tasks.matching import RANKINGS

    parser: argparse.ArgumentParser = build_parser("")
    commands = parser._subparsers._group_actions[0].choices
    (ranking,) = [one for one in commands["match"]._actions if one.dest == "rank_by"]
    assert tuple(ranking.choices) == RANKINGS
