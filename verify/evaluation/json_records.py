"""Records of JSON files, one at a time: files may be larger than memory."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from configs.errors import InputError
from configs.load import shown

Record = dict[str, Any]


def open_json(path: Path) -> BinaryIO:
    """A file's bytes behind the byte order mark that some editors write.

    Raises:
        OSError: the file cannot be read.
    """
    stream = path.open("rb")
    if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        stream.seek(0)
    return stream


def first_byte(path: Path) -> str:
    """The first character that is not white space: what kind of JSON value the file holds.

    Raises:
        InputError: the file is missing, unreadable or empty.
    """
    try:
        with open_json(path) as stream:
            while block := stream.read(4096):
                text = block.lstrip()
                if text:
                    return chr(text[0])
    except OSError as error:
        raise InputError(
            f"{shown(path)}: cannot be read ({error.strerror or error}); name an existing file"
        ) from None
    raise InputError(f"{shown(path)}: is empty; name a file with annotations")


def records(path: Path, key: str) -> Iterator[tuple[str, Record]]:
    """Yields ``(place, record)`` of the list under ``key``, or of the file itself for ``""``.

    ``place`` is what messages call it: ``file: key[number]``.

    Raises:
        InputError: missing file, broken JSON, or a record that is not an object.
    """
    first_byte(path)
    prefix = f"{key}.item" if key else "item"
    number = -1
    try:
        with open_json(path) as stream:
            for number, value in enumerate(ijson.items(stream, prefix, use_float=True)):
                place = f"{shown(path)}: {key}[{number}]"
                if not isinstance(value, dict):
                    raise InputError(f"{place}: must be an object; correct or remove it")
                yield place, value
    except ijson.JSONError as error:
        reason = " ".join(str(error).split())[:120]
        where = f"{key}[{number + 1}]" if key else f"[{number + 1}]"
        raise InputError(
            f"{shown(path)}: {where}: not valid JSON ({reason}); copy the file again"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)}: not UTF-8 text ({error.reason})") from None
    if number < 0:
        raise InputError(f"{shown(path)}: {key or 'the list'}: missing or empty; name another file")


def text_of(record: Record, key: str, place: str) -> str:
    """A text of a record.

    Raises:
        InputError: missing, empty or not a text.
    """
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place}.{key}: must be a text that is not empty; correct the file")
    return value


def id_of(record: Record, key: str, place: str) -> str:
    """An id, number or text.

    Raises:
        InputError: missing or of another type.
    """
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise InputError(f"{place}.{key}: must be a number or a text; correct the file")
    return str(value)


def list_of(record: Record, key: str, place: str) -> list[Any]:
    """A list that is not empty.

    Raises:
        InputError: missing, empty or not a list.
    """
    value = record.get(key)
    if not isinstance(value, list) or not value:
        raise InputError(f"{place}.{key}: must be a list that is not empty; correct the file")
    return value
