"""verify.json: what it holds, and that it never outlives what it is about."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.atomic import write_atomically
from pipeline.json_file import read_object
from pipeline.manifest import key_of
from verify.results import Check, passed

UNFINISHED = "verification did not finish; run it again"


def verdict_text(checks: Iterable[Check], **more: Any) -> str:
    """What verify.json holds: ``passed``, ``checks``, whatever else is worth recording, a digest.

    The same checks give the same text.
    """
    every = list(checks)
    verdict = {"passed": passed(every), "checks": [check.record() for check in every], **more}
    plain = json.loads(json.dumps(verdict, allow_nan=False))
    return json.dumps({**plain, "sha256": key_of(plain)}, indent=1) + "\n"


def read_verdict(path: Path) -> dict[str, Any]:
    """Reads verify.json.

    Raises:
        OSError, ValueError: missing; damaged, changed by hand, or of another version.
    """
    verdict = read_object(path)
    digest = verdict.pop("sha256", None)
    if digest != key_of(verdict):
        raise ValueError("changed after it was written")
    for check in verdict["checks"]:
        Check.of(check)
    return verdict


class VerdictFile:
    """verify.json while a verification runs: until that has ended, it says so.

    In a folder that cannot be written, an old verdict stays; nothing is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = path.with_name(f".{path.name}.before")
        self.writable = os.access(path.parent, os.W_OK)

    def begin(self) -> None:
        """Sets an old verdict aside, before anything that it is about is read."""
        if self._path.is_file():
            self._path.replace(self._before)
            self.write(verdict_text([], error=UNFINISHED))

    def fail(self, reason: str) -> None:
        """Replaces an old verdict by the reason why there is no new one."""
        if self.writable and self._path.is_file():
            self.write(verdict_text([], error=reason))
            self._before.unlink(missing_ok=True)

    def write(self, text: str) -> None:
        """Writes what the file says from now on.

        Raises:
            ToolError: the disk is full or the folder cannot be written.
        """
        write_atomically(self._path, text)

    def finish(self, text: str) -> None:
        """Writes the verdict; one that says the same as before stays that very file."""
        if not self.writable:
            return
        if self._before.is_file() and self._before.read_bytes() == text.encode():
            self._before.replace(self._path)
        else:
            self.write(text)
            self._before.unlink(missing_ok=True)
