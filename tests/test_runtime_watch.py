"""``blip-edge watch``: captions what arrives, once it is whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.__main__ import main
from runtime.cli import services
from tests.runtime_support import ROOT
from tests.server_support import encoded

BACKEND = ["--target", "onnx", "--threads", "1", "--interval", "0.05"]


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_lies_there_is_captioned_once(exported_artifacts: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "captions.jsonl"
    (folder / "deep").mkdir(parents=True)
    for index, name in enumerate(["b.png", "a.png", "deep/c.png"]):
        (folder / name).write_bytes(encoded(index))
        os.utime(folder / name, (1_000_000 + index, 1_000_000 + index))
    (folder / "notes.txt").write_text("no image")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "empty.png").write_bytes(b"")
    command = ["watch", str(folder), "--artifacts", str(exported_artifacts), *BACKEND]
    command += ["--output", str(output), "--once"]
    assert main(command) == 0
    found = records(output)
    assert [Path(str(one["image"])).name for one in found] == ["b.png", "a.png", "broken.png"]
    assert found[0]["text"]
    assert found[0]["target"] == "onnx"
    assert "not an image" in str(found[2]["error"])
    with output.open("a") as stream:
        stream.write('{"image": "killed whi')
    (folder / "a.png").write_bytes(encoded(3))
    assert main([*command, "--recursive"]) == 0
    again = [json.loads(line) for line in output.read_text().splitlines()[4:]]
    assert sorted(Path(str(one["image"])).name for one in again) == ["a.png", "c.png"]


def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    watched = services._Watched(tmp_path, False, {})
    path.write_bytes(encoded()[:50])
    assert watched.settled() == []
    with path.open("ab") as stream:
        stream.write(encoded()[50:])
    assert watched.settled() == []
    assert watched.unsettled
    assert watched.settled() == [path]
    assert watched.settled() == []
    assert not watched.unsettled
    path.unlink()
    assert watched.settled() == []
    path.write_bytes(encoded())
    assert watched.settled() == []
    assert watched.settled() == [path]


def test_what_arrives_is_printed_until_the_end(exported_artifacts: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runtime", "watch", str(tmp_path)]
    command += ["--artifacts", str(exported_artifacts), *BACKEND]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores Ctrl-C, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        for index in range(2):
            (tmp_path / "new.part").write_bytes(encoded(index))
            (tmp_path / "new.part").rename(tmp_path / f"{index}.png")
            found = json.loads(process.stdout.readline())
            assert found["image"] == str(tmp_path / f"{index}.png")
            assert found["text"]
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none: no such folder"),
        ([".", "--interval", "0"], "--interval 0.0"),
        ([".", "--compare", "onnx,openvino"], "watch takes one --target"),
        ([".", "--output", "none/captions.jsonl"], "cannot be written"),
    ],
)
def test_what_cannot_be_watched_is_named(
    exported_artifacts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    target = [] if "--compare" in arguments else ["--target", "onnx"]
    folder = ["--artifacts", str(exported_artifacts)]
    assert main(["watch", *arguments, *folder, *target, "--once"]) == 2
    assert message in capsys.readouterr().err
