"""What a command works on: image files from names, folders and patterns, or the rows of a CSV."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

from ..errors import InputError
from ..files.image_names import image_files

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
                found = image_files(inside)
            elif not path.exists() and glob.has_magic(name):
                found = image_files(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
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


def _rows(table: Path, folder: Path, column: str) -> Iterator[WorkItem]:
    """One item per run of rows with the same image, so that it is encoded once."""
    from ..files.csv_rows import open_csv

    needed = (_IMAGE_COLUMN, column)
    file = open_csv(table, ",".join(needed))
    missing = [name for name in needed if name not in file.columns]
    if missing:
        raise InputError(
            f"{file.place(1)}: no column '{missing[0]}'; the first line must name "
            f"{','.join(needed)}, it names {','.join(file.columns)}"
        )
    image, texts = "", []  # type: str, List[str]
    for line, row in file.rows():
        empty = [name for name in needed if not row[name]]
        if empty:
            raise InputError(
                f"{file.place(line)}: column '{empty[0]}' is empty; fill it or drop the row"
            )
        if row[_IMAGE_COLUMN] != image and texts:
            yield WorkItem(folder / image, tuple(texts))
            texts = []
        image = row[_IMAGE_COLUMN]
        texts.append(row[column])
    yield WorkItem(folder / image, tuple(texts))
