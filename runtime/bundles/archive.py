"""Reads a bundle's archive: nothing is written before its name and size are known to be harmless.

``make bundle`` writes plain ustar: regular files under one folder, sorted, each once. Everything
else is refused, so no link, device, extended header or second meaning of a name needs handling.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO, Iterator, Tuple, Union

from ..errors import InputError
from ..files.records import check_names
from .format import BundleError

#: Rights of files: others (set-user-id, write for all) are refused.
MODES = (0o644, 0o755)
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_MOST_FILES = 10_000
#: An archive may unpack to this, and beyond it to so many times its own size.
_ALWAYS_BYTES = 64 << 20
_MOST_TIMES = 100


def unpack(archive: Path, into: Path) -> Path:
    """Unpacks an archive into an empty folder; returns the one folder that it holds.

    Raises:
        InputError: no such file.
        BundleError: truncated, no archive, or one that ``make bundle`` does not write.
    """
    try:
        size = archive.stat().st_size
        with archive.open("rb") as raw, gzip.open(raw, "rb") as stream:
            return _unpack(_Limited(stream, max(_ALWAYS_BYTES, _MOST_TIMES * size)), into)
    except FileNotFoundError:
        raise InputError(f"{archive}: no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, UnicodeError) as error:
        raise BundleError(
            f"{archive.name}: truncated or damaged ({error}); get the file again"
        ) from None
    except OSError as error:
        raise InputError(f"{archive}: cannot be unpacked ({error.strerror or error})") from None


class _Limited:
    """A stream that must end before a number of bytes."""

    def __init__(self, stream: Union[BinaryIO, gzip.GzipFile], most: int) -> None:
        self._stream = stream
        self._left = most

    def read(self, count: int) -> bytes:
        """Exactly so many bytes."""
        self._left -= count
        if self._left < 0:
            raise BundleError("unpacks to far more than its size; a bundle does not")
        data = self._stream.read(count)
        if len(data) != count:
            raise EOFError("it ends within a file")
        return data

    def check_end(self) -> None:
        """Nothing may follow but the padding of the last record."""
        while True:
            data = self._stream.read(_BLOCK)
            if not data:
                return
            self._left -= _BLOCK
            if data.strip(b"\0") or self._left < 0:
                raise BundleError("something follows the end of the archive")


def _unpack(stream: _Limited, into: Path) -> Path:
    root = last = ""
    for name, size in _members(stream):
        folder = name.partition("/")[0]
        root = root or folder
        if folder != root or folder == name:
            raise BundleError(f"{name!r} lies outside the one folder {root!r}")
        if name <= last:
            raise BundleError(f"{name!r} is there twice or out of order")
        last = name
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            while size > 0:
                file.write(stream.read(min(size, _CHUNK)))
                size -= _CHUNK
    if not root:
        raise BundleError("it holds no file")
    return into / root


def _members(stream: _Limited) -> Iterator[Tuple[str, int]]:
    """Names and sizes; the content of each is read before the next one is asked for."""
    for _ in range(_MOST_FILES):
        block = stream.read(_BLOCK)
        if not block.strip(b"\0"):
            stream.check_end()
            return
        member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        name = member.name
        if member.type != tarfile.REGTYPE:
            raise BundleError(f"{name!r} is a link, folder, device or extension, not a plain file")
        try:
            check_names("member", name)
        except ValueError as error:
            raise BundleError(str(error)) from None
        if "\\" in name or any(part in ("", ".") for part in name.split("/")):
            raise BundleError(f"{name!r} is no plain relative name")
        if member.mode not in MODES or member.size < 0:
            raise BundleError(f"{name!r} has rights {member.mode:o}; a bundle's are 644 or 755")
        yield name, member.size
        padding = -member.size % _BLOCK
        if padding and stream.read(padding).strip(b"\0"):
            raise BundleError(f"{name!r} has something hidden behind it")
    raise BundleError(f"it holds more than {_MOST_FILES} files")
