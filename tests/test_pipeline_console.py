"""What a log shows where there is no terminal: progress in plain lines, errors at their file."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import typer

from configs.errors import ConfigError
from pipeline import console
from pipeline.command import exit_codes
from pipeline.console import steps
from pipeline.goals.annotations import annotate, annotation, summarise


def wait_for(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    seen = ""
    for _ in range(600):
        seen += capsys.readouterr().err
        if text in seen:
            return seen
        time.sleep(0.05)
    return seen


def test_a_log_hears_now_and_then_that_work_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PLAIN_LINES_S", 0.02)
    with steps("verify", 5) as progress:
        progress.start("[caption] text_decoder")
        progress.done()
        seen = wait_for("verify: [caption] text_decoder (1/5), ", capsys)
        assert " s\n" in seen
        with steps("simulate", 9) as inner:
            inner.start("scene 3")
            assert "(1/5); simulate: scene 3 (0/9), " in wait_for("simulate", capsys)
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_short_step_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with steps("verify", 1) as progress:
        progress.done()
    assert capsys.readouterr().err.strip() == ""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "configs/mine.yaml: tasks.caption: unknown, 50 %",
            "::error file=configs/mine.yaml::tasks.caption: unknown, 50 %25",
        ),
        ("a/b,c.yaml:7: bad", "::error file=a/b%2Cc.yaml,line=7::bad"),
        ("--target x: unknown target", "::error::--target x: unknown target"),
        ("one\r\ntwo", "::error::one%0D%0Atwo"),
    ],
)
def test_an_error_is_marked_at_its_file(message: str, expected: str) -> None:
    assert annotation(message) == expected


def test_annotations_and_summaries_are_for_github_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotate("x.yaml: y", {})
    summarise("text", {})
    assert capsys.readouterr().err == ""
    annotate("x.yaml: y\nz.yaml: w", {"GITHUB_ACTIONS": "true"})
    assert capsys.readouterr().err == "::error file=x.yaml::y\n::error file=z.yaml::w\n"
    path = tmp_path / "summary.md"
    for part in ("one", "two"):
        summarise(part, {"GITHUB_STEP_SUMMARY": str(path)})
    assert path.read_text() == "one\ntwo\n"


def test_every_stage_marks_its_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")

    @exit_codes
    def stage() -> None:
        raise ConfigError("configs/mine.yaml: name: missing")

    with pytest.raises(typer.Exit) as ended:
        stage()
    assert ended.value.exit_code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "::error file=configs/mine.yaml::name: missing"
