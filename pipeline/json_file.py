"""The one reader of JSON: files of ours and of others, single objects and lines.

Whatever is wrong with a file comes out as ``ValueError`` or ``OSError``. A file that we can make
again is "not there" then (:func:`stored`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from configs.errors import ToolError

Value = TypeVar("Value")

#: What reading and interpreting a damaged or foreign file may raise.
WRONG = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deep, a number that JSON does not have, or no
            object.
    """
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError, ValueError: missing, unreadable, or as :func:`parse_object` says.
    """
    return parse_object(path.read_bytes())


def stored(path: Path, read: Callable[[dict[str, Any]], Value]) -> Value | None:
    """What ``read`` makes of a file that we can make again.

    None: it is missing, damaged, of another version, or ``read`` stumbled over what it holds.
    """
    try:
        return read(read_object(path))
    except WRONG:
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every object of a file of JSON lines; torn and damaged lines are left out.

    Raises:
        ToolError: the file is there but cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ToolError(f"{path}: cannot be read ({error.strerror}); delete it") from None
    return [record for line in lines if (record := _line(line)) is not None]


def _line(line: bytes) -> dict[str, Any] | None:
    try:
        return parse_object(line)
    except ValueError:
        return None  # what it was about is computed again


def append_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Appends one line per object; they are on the disk when this returns.

    A kill tears at most the last line.

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
