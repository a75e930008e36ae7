"""What README and docs show at a prompt is run, and prints what they say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)
#: Names of the program that a page may show.
_PROGRAM = (".venv/bin/blip-edge", "blip-edge")


def shown() -> Iterator[tuple[str, str, str]]:
    """(page, command, what is printed) of every command after a prompt."""
    for page in PAGES:
        for block in _BLOCK.findall(page.read_text()):
            for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
                command, _, printed = part.partition("\n")
                yield page.name, command, printed


SHOWN = list(shown())


def test_pages_show_commands() -> None:
    assert {page for page, _, _ in SHOWN} >= {"README.md"}


@pytest.fixture(scope="module")
def checkout(openvino_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has the models and takes what a command writes."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "models").symlink_to(openvino_artifacts.parents[1])
    return folder


@pytest.mark.parametrize(
    ("page", "command", "printed"), SHOWN, ids=[f"{page}: {command}" for page, command, _ in SHOWN]
)
def test_a_command_prints_what_its_page_says(
    checkout: Path, page: str, command: str, printed: str
) -> None:
    program, *arguments = shlex.split(command, comments=True)
    assert program in _PROGRAM, page
    result = subprocess.run(
        [sys.executable, "-m", "runtime", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = [line.rstrip() for line in result.stdout.splitlines()]
    assert found == [line.rstrip() for line in printed.splitlines()], page
