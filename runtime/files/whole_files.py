"""Writes files that are whole or not there."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from ..errors import InputError


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file, or replaces it, in one step: a reader sees the old one or the new one.

    Raises:
        InputError: it cannot be written.
    """
    part = path.parent / f".{path.name[:50]}.{os.getpid()}.{threading.get_ident()}.part"
    try:
        try:
            part.write_bytes(data)
            part.replace(path)
        except BaseException:
            if part.exists():
                part.unlink()
            raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be written ({reason}); name another file") from None
