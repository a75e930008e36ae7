"""The runtime's reader of CSV files, with the pipeline's paths and errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from configs.load import shown
from pipeline.runtime_errors import runtime_failures
from runtime.files import csv_rows


class CsvFile(csv_rows.CsvFile):
    """See ``runtime.files.csv_rows``; its errors are ``configs.errors.InputError``."""

    def rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Line numbers and fields by column."""
        with runtime_failures():
            yield from super().rows()


def open_csv(path: Path, needed: str) -> CsvFile:
    """Reads a CSV file's text and first line; ``needed`` are its columns, for messages.

    Raises:
        InputError: it cannot be used.
    """
    with runtime_failures():
        return CsvFile(**vars(csv_rows.open_csv(path, needed, name=shown(path))))
