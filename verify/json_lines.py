"""Files of JSON lines, appended to as results come in: a kill tears at most the last line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from configs.errors import ToolError


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every object of the file; torn and damaged lines are left out, a missing file is empty.

    Raises:
        ToolError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ToolError(f"{path}: cannot be read ({error.strerror}); delete it") from None
    return [record for line in lines if (record := _object(line)) is not None]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None  # what it was about is computed again
    return record if isinstance(record, dict) else None


def append_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Appends one line per object; they are on the disk when this returns.

    Raises:
        ToolError: the disk is full or the folder cannot be written.
    """
    text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 1))
            torn = stream.read(1) not in (b"", b"\n")
            stream.write((b"\n" if torn else b"") + text.encode())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise ToolError(
            f"{path}: cannot be written ({error.strerror}); free space or rights"
        ) from None
