"""CSV files that users write: read strictly, since what is guessed here is silently wrong later."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.errors import InputError
from configs.load import shown

#: What spreadsheets of some countries put between fields instead.
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class CsvFile:
    """A CSV file whose first line names its columns; nothing below it was read yet."""

    path: Path
    #: names in lower case, without spaces around them, each once
    columns: tuple[str, ...]
    _text: str

    def rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Line numbers and fields by column, stripped; empty lines are left out.

        Raises:
            InputError: a line with more or fewer fields than columns, an unbalanced quote, or
                nothing below the first line.
        """
        reader = csv.reader(io.StringIO(self._text, newline=""), strict=True)
        next(reader)
        count = 0
        try:
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(self.columns):
                    raise InputError(
                        f"{shown(self.path)}: line {reader.line_num}: {len(fields)} fields, the "
                        f"first line has {len(self.columns)}; put quotes around fields with commas"
                    )
                count += 1
                stripped = [field.strip() for field in fields]
                yield reader.line_num, dict(zip(self.columns, stripped, strict=True))
        except csv.Error as error:
            raise InputError(
                f"{shown(self.path)}: line {reader.line_num}: {error}; check its quotes"
            ) from None
        if count == 0:
            raise InputError(f"{shown(self.path)}: is empty; write lines below the first one")


def open_csv(path: Path, needed: str) -> CsvFile:
    """Reads a CSV file's text and first line.

    UTF-8 with or without a byte order mark; any line ends.

    Args:
        path: the file.
        needed: the columns it should have, for messages.

    Raises:
        InputError: missing, not UTF-8, empty, separated by something else, or a column named twice.
    """
    text = _text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = tuple(name.strip().lower() for name in next(reader, []))
    except csv.Error as error:
        raise InputError(f"{shown(path)}: line 1: not a CSV file ({error})") from None
    if not any(columns):
        raise InputError(f"{shown(path)}: is empty; give it columns {needed} and lines below them")
    for separator, name in _OTHER_SEPARATORS.items():
        if len(columns) == 1 and separator in columns[0]:
            raise InputError(
                f"{shown(path)}: line 1: fields are separated by {name}; save it with commas"
            )
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise InputError(
            f"{shown(path)}: line 1: columns {', '.join(columns)}: {twice[0]!r} is there twice; "
            f"name each once: {needed}"
        )
    return CsvFile(path, columns, text)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{shown(path)}: cannot be read ({reason}); name a CSV file") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{shown(path)}: line {line}: not UTF-8 text ({error.reason}); save it as UTF-8"
        ) from None
