"""verify.json: what it holds, and that it never outlives what it is about."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.atomic import write_atomically
from pipeline.json_file import WRONG, read_object
from pipeline.manifest import key_of
from verify.results import Check, passed

UNFINISHED = "verification did not finish; run it again"
#: 2: several runs, each with its commit, time, host and tools; the first version names no run
SCHEMA_VERSION = 2

Json = dict[str, Any]


def verdict_text(checks: Iterable[Check], **more: Any) -> str:
    """What verify.json holds: ``passed``, ``checks``, whatever else is worth recording, a digest.

    The same checks give the same text.
    """
    every = list(checks)
    return sealed({"passed": passed(every), "checks": [check.record() for check in every], **more})


def sealed(verdict: Json) -> str:
    """A verdict as its file holds it: with the version of its format and its own digest."""
    versioned = {"schema_version": SCHEMA_VERSION, **verdict}
    plain = json.loads(json.dumps(versioned, allow_nan=False))
    return json.dumps({**plain, "sha256": key_of(plain)}, indent=1) + "\n"


def read_verdict(path: Path) -> Json:
    """Reads verify.json; one of the first version has neither runs nor sets.

    Raises:
        OSError, ValueError: missing; damaged, changed by hand, or of a later version.
    """
    verdict = read_object(path)
    digest = verdict.pop("sha256", None)
    if digest != key_of(verdict):
        raise ValueError("changed after it was written")
    version = verdict.get("schema_version", 1)
    if version not in (1, SCHEMA_VERSION):
        raise ValueError(f"schema_version {version} is not {SCHEMA_VERSION}")
    runs = [datetime.fromisoformat(run["time"]) for run in verdict.get("runs", ())]
    for check in verdict["checks"]:
        Check.of(check)
        if runs and check["run"] not in range(len(runs)):
            raise ValueError(f"checks: run {check['run']} is not in runs")
    return verdict


class VerdictFile:
    """verify.json while a verification runs: until that has ended, it says so.

    The last finished verdict waits beside it, for what it says of other artifacts stays true. In a
    folder that cannot be written, an old verdict stays; nothing is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = path.with_name(f".{path.name}.before")
        self.writable = os.access(path.parent, os.W_OK)

    def begin(self) -> None:
        """Sets an old verdict aside, before anything that it is about is read."""
        if self._path.is_file():
            if not self._before.is_file() or _finished(self._path):
                self._path.replace(self._before)
            self.write(verdict_text([], error=UNFINISHED))

    def fail(self, reason: str) -> None:
        """Replaces an old verdict by the reason why there is no new one."""
        if self.writable and self._path.is_file():
            self.write(verdict_text([], error=reason))

    def write(self, text: str) -> None:
        """Writes what the file says from now on.

        Raises:
            ToolError: the disk is full or the folder cannot be written.
        """
        write_atomically(self._path, text)

    def finish(self, join: Callable[[Json | None], Json]) -> Json:
        """Writes the verdict: what ``join`` makes of the last finished one (None: there is none).

        One that says the same as before stays that very file.
        """
        path = self._before if self.writable else self._path
        before = _finished(path)
        verdict = join(before)
        if self.writable:
            if before is not None and verdict == before:
                path.replace(self._path)
            else:
                self.write(sealed(verdict))
                path.unlink(missing_ok=True)
        return verdict


def _finished(path: Path) -> Json | None:
    """A finished verdict; None: it did not finish, is damaged, or is not there."""
    try:
        verdict = read_verdict(path)
    except WRONG:
        return None
    return verdict if verdict["checks"] else None
