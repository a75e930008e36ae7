"""How a command ends: one line and an exit code, whatever happens to it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

COMMAND = """
import os, signal, sys, time
import typer
from configs.errors import InputError
from pipeline.command import exit_codes

class PanicException(BaseException):
    pass

@exit_codes
def command() -> None:
    {body}

try:
    command()
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


def run(body: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND.format(body=body)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("raise InputError('a.yaml: no')", 2, "error: a.yaml: no"),
        ("raise ValueError('two\\nlines')", 1, "unexpected ValueError: two lines"),
        ("raise RecursionError", 1, "BLIP_EDGE_DEBUG=1 shows where"),
        ("raise MemoryError", 1, "unexpected MemoryError"),
        ("raise PanicException('a Rust panic')", 1, "unexpected PanicException: a Rust panic"),
        ("open('/nowhere/a')", 1, "/nowhere/a: No such file or directory; check free space"),
    ],
)
def test_every_error_is_one_line(body: str, code: int, words: str) -> None:
    result = run(body)
    assert result.returncode == code
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_asked_for_the_place_of_an_unexpected_error_is_shown() -> None:
    result = run("raise ValueError('why')", BLIP_EDGE_DEBUG="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_an_exit_code_of_its_own_stays() -> None:
    assert run("raise typer.Exit(7)").returncode == 7
    assert run("sys.exit(8)").returncode == 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_a_command_alike(number: signal.Signals, tmp_path: Path) -> None:
    """Tidied up, in one line, with the exit code that shells give such a command."""
    left = tmp_path / "left"
    body = f"""
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        open({str(left)!r}, "w").close()
"""
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(body=body)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in (number, signal.SIGINT)],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, words = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert words == "interrupted; finished artifacts are kept, run again to go on\n"
    assert left.exists()


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    body = "os.kill(os.getpid(), signal.SIGHUP)"
    program = COMMAND.format(body=body).replace("@exit", f"{ignored}\n@exit")
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert result.returncode == 0
