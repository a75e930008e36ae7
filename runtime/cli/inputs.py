"""What a command works on: image files from names, folders and patterns, or the rows of a CSV."""

from __future__ import annotations

import csv
import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from ..errors import InputError
from ..preprocessing.images import IMAGE_SUFFIXES

_IMAGE_COLUMN = "image"


@dataclass(frozen=True)
class WorkItem:
    """One image, and the texts that a CSV gives for it: questions, descriptions or one prompt."""

    image: Path
    texts: Tuple[str, ...] = ()


def image_paths(names: Sequence[str], *, recursive: bool = False) -> List[Path]:
    """Image files, with folders and patterns replaced by the images in them, sorted by name.

    Args:
        names: files, folders, or patterns such as ``photos/**/*.jpg``. A file that does not exist
            is kept: it is reported when its turn comes.
        recursive: look into the folders inside folders too.

    Raises:
        InputError: a folder without images, or a pattern that fits none.
    """
    paths: List[Path] = []
    for name in names:
        path = Path(name)
        try:
            if path.is_dir():
                inside = path.rglob("*") if recursive else path.iterdir()
                found = _images(inside)
            elif not path.exists() and glob.has_magic(name):
                found = _images(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            else:
                paths.append(path)
                continue
        except (OSError, ValueError) as error:
            raise InputError(f"{name}: cannot be read ({error})") from None
        if not found:
            hint = "" if recursive or not path.is_dir() else " (--recursive looks deeper)"
            raise InputError(f"{name}: no images there{hint}")
        paths += found
    return paths


def work_items(
    names: Sequence[str], table: Optional[Path], column: str, *, recursive: bool = False
) -> List[WorkItem]:
    """The images named, or the rows of a CSV with their images and texts.

    Args:
        names: as in ``image_paths``; with a CSV none, or the folder that its images lie in.
        table: CSV file, or None.
        column: the CSV's column of texts.
        recursive: as in ``image_paths``.

    Raises:
        InputError: nothing to work on, or a CSV that cannot be used.
    """
    if table is None:
        if not names:
            raise InputError("images: name at least one file or folder, or give a table with --csv")
        return [WorkItem(path) for path in image_paths(names, recursive=recursive)]
    folder = table.parent
    if names:
        folder = Path(names[0])
        if len(names) > 1 or not folder.is_dir():
            raise InputError("--csv: pass one folder, which the table's images lie in, or none")
    return list(_rows(table, folder, column))


def _images(paths: Iterable[Path]) -> List[Path]:
    return sorted(
        path
        for path in paths
        # Hidden files with an image's suffix are other programs' notes, not images.
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and not path.is_dir()
    )


def _rows(table: Path, folder: Path, column: str) -> Iterator[WorkItem]:
    """One item per run of rows with the same image, so that it is encoded once."""
    image, texts = "", []  # type: str, List[str]
    for line, row in _records(table, column):
        name, text = (row.get(_IMAGE_COLUMN) or "").strip(), (row.get(column) or "").strip()
        if not name or not text:
            empty = _IMAGE_COLUMN if not name else column
            raise InputError(f"{table}:{line}: column '{empty}' is empty; fill it or drop the row")
        if name != image and texts:
            yield WorkItem(folder / image, tuple(texts))
            texts = []
        image = name
        texts.append(text)
    if not texts:
        raise InputError(f"{table}: no rows below its header")
    yield WorkItem(folder / image, tuple(texts))


def _records(table: Path, column: str) -> Iterator[Tuple[int, Dict[str, str]]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            missing = [n for n in (_IMAGE_COLUMN, column) if n not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"{table}:1: no column '{missing[0]}'; the header must name "
                    f"{_IMAGE_COLUMN} and {column}"
                )
            for row in reader:
                # Fields that no column takes lie under None.
                if None in row:
                    raise InputError(
                        f"{table}:{reader.line_num}: more fields than the header's "
                        f"{len(reader.fieldnames or ())}; put quotes around texts with commas"
                    )
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--csv {table}: cannot be read ({error})") from None
