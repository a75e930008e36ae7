"""CSV files that users write: read strictly, since what is guessed here is silently wrong later."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, Optional, Tuple

from ..errors import InputError

#: What spreadsheets of some countries put between fields instead.
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class CsvFile:
    """A CSV file whose first line names its columns; nothing below it was read yet."""

    #: what messages call the file
    name: str
    #: names in lower case, without spaces around them, each once
    columns: Tuple[str, ...]
    _text: str

    def place(self, line: int) -> str:
        """What messages call a line."""
        return f"{self.name}: line {line}"

    def rows(self) -> Iterator[Tuple[int, Dict[str, str]]]:
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
                        f"{self.place(reader.line_num)}: {len(fields)} fields, the first line has "
                        f"{len(self.columns)}; put quotes around fields with commas"
                    )
                count += 1
                yield reader.line_num, dict(zip(self.columns, map(str.strip, fields)))
        except csv.Error as error:
            raise InputError(f"{self.place(reader.line_num)}: {error}; check its quotes") from None
        if count == 0:
            raise InputError(f"{self.name}: is empty; write lines below the first one")


def open_csv(
    path: Path, needed: str, name: Optional[str] = None, errors: str = "strict"
) -> CsvFile:
    """Reads a CSV file's text and first line.

    UTF-8 with or without a byte order mark; any line ends; column names in any case.

    Args:
        path: the file.
        needed: the columns that it should have, for messages.
        name: what messages call the file; its path if None.
        errors: what becomes of bytes that are not UTF-8, as in ``bytes.decode``.

    Raises:
        InputError: missing, not UTF-8, empty, separated by something else, or a column named twice.
    """
    where = str(path) if name is None else name
    text = _text(path, where, errors)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = tuple(column.strip().lower() for column in next(reader, []))
    except csv.Error as error:
        raise InputError(f"{where}: line 1: not a CSV file ({error}); check its quotes") from None
    if not any(columns):
        raise InputError(f"{where}: is empty; give it columns {needed} and lines below them")
    for separator, called in _OTHER_SEPARATORS.items():
        if len(columns) == 1 and separator in columns[0]:
            raise InputError(
                f"{where}: line 1: fields are separated by {called}; save it with commas"
            )
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
        raise InputError(
            f"{where}: line 1: columns {', '.join(columns)}: {twice[0]!r} is there twice; "
            f"name each once: {needed}"
        )
    return CsvFile(where, columns, text)


def _text(path: Path, where: str, errors: str) -> str:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{where}: cannot be read ({reason}); name a CSV file") from None
    try:
        return data.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{where}: line {line}: not UTF-8 text ({error.reason}); save it as UTF-8"
        ) from None
