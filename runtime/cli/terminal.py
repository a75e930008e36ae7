"""What may reach a terminal: text without control characters, and JSON that every reader takes."""

from __future__ import annotations

import json
import re
import sys
from typing import Any, Mapping, Optional, TextIO

#: Control characters, line and paragraph ends, changes of direction, and halves of characters.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """One line of text; what could move a cursor or break the line is written as an escape."""
    return _UNSAFE.sub(lambda found: ascii(found.group())[1:-1], text)


def say(text: str, stream: Optional[TextIO] = None) -> None:
    """Prints one line, at once."""
    print(printable(text), file=stream or sys.stdout, flush=True)


def say_json(record: Mapping[str, Any]) -> None:
    """Prints one JSON object; NaN and infinity, which JSON does not have, are an error."""
    # ASCII alone: every control character is an escape, but for the last one of ASCII itself.
    print(json.dumps(record, allow_nan=False).replace("\x7f", "\\u007f"), flush=True)
