"""What GitHub shows beside a run: errors at the file that they are about, and a summary page."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

#: ``configs/mine.yaml: tasks.caption: ...``: errors begin with the file that they are about.
_FILE = re.compile(
    r"^(?P<file>[^\s:][^:\n]*\.(?:ya?ml|json|py|toml|txt)):(?P<line>\d+:)? (?P<text>.*)", re.S
)


def annotation(message: str) -> str:
    """An error as a workflow command; line breaks and separators are escaped."""
    found = _FILE.match(message)
    if found is None:
        return f"::error::{_data(message)}"
    line = f",line={found['line'][:-1]}" if found["line"] else ""
    return f"::error file={_property(found['file'])}{line}::{_data(found['text'])}"


def annotate(message: str, environment: Mapping[str, str] = os.environ) -> None:
    """Marks an error in the list of changed files; nothing outside GitHub's runners."""
    if environment.get("GITHUB_ACTIONS") == "true":
        for line in message.splitlines():
            print(annotation(line), file=sys.stderr, flush=True)


def summarise(markdown: str, environment: Mapping[str, str] = os.environ) -> None:
    """Appends to the summary page of the step; nothing where there is none."""
    path = environment.get("GITHUB_STEP_SUMMARY")
    if path:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(markdown + "\n")


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
