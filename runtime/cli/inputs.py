"""What a command works on: image files from names, folders and patterns, or the rows of a CSV."""

from __future__ import annotations

import glob
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple, Union

from ..errors import InputError
from ..files.image_names import image_files

_IMAGE_COLUMN = "image"
#: The name of an image that is read from standard input.
STANDARD_INPUT = Path("-")
#: What is not UTF-8 is kept as it is: the text that holds it is refused, the others are not.
NOT_UNICODE = "surrogateescape"


@dataclass(frozen=True)
class WorkItem:
    """One image, and the texts that a CSV gives for it: questions, descriptions or one prompt."""

    image: Path
    texts: Tuple[str, ...] = ()
    #: where each text was written, for messages
    places: Tuple[str, ...] = ()
    #: what is wrong with the row, if it names no image
    problem: Optional[str] = None

    @property
    def source(self) -> Union[Path, bytes]:
        """The image to work on.

        Raises:
            InputError: the row names none, or standard input cannot be read.
        """
        if self.problem is not None:
            raise InputError(self.problem)
        return image_source(self.image)


def image_source(image: Path) -> Union[Path, bytes]:
    """The path of an image, or the image that standard input holds."""
    return _standard_input() if image == STANDARD_INPUT else image


@lru_cache(maxsize=None)
def _standard_input() -> bytes:
    from ..preprocessing.images import MAXIMUM_FILE_BYTES

    try:
        data: bytes = sys.stdin.buffer.read(MAXIMUM_FILE_BYTES + 1)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"-: standard input cannot be read ({error})") from None
    if len(data) > MAXIMUM_FILE_BYTES:
        raise InputError(f"-: at most {MAXIMUM_FILE_BYTES} bytes are read")
    return data


def image_paths(names: Sequence[str], *, recursive: bool = False) -> List[Path]:
    """Image files, each once; folders and patterns are replaced by their images, sorted by name.

    Args:
        names: files, folders, patterns such as ``photos/**/*.jpg``, or ``-``. A file that does
            not exist is kept: it is reported when its turn comes.
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
    return list(dict.fromkeys(paths))


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
    file = open_csv(table, ",".join(needed), errors=NOT_UNICODE)
    missing = [name for name in needed if name not in file.columns]
    if missing:
        raise InputError(
            f"{file.place(1)}: no column '{missing[0]}'; the first line must name "
            f"{','.join(needed)}, it names {','.join(file.columns)}"
        )
    image, texts, places = "", [], []  # type: str, List[str], List[str]
    for line, row in file.rows():
        place = f"{table}:{line}"
        if row[_IMAGE_COLUMN] != image:
            if texts:
                yield WorkItem(folder / image, tuple(texts), tuple(places))
            image, texts, places = row[_IMAGE_COLUMN], [], []
        if image:
            texts.append(row[column])
            places.append(place)
        else:
            problem = f"{place}: column '{_IMAGE_COLUMN}' is empty; fill it or drop the row"
            yield WorkItem(table, (row[column],), (place,), problem)
    if texts:
        yield WorkItem(folder / image, tuple(texts), tuple(places))


def text_lines(path: Path, option: str = "--texts") -> List[Tuple[str, str]]:
    """Texts of a file, one per line, each after its place; empty lines are left out.

    Raises:
        InputError: the file cannot be read.
    """
    content = _content(option, path)
    lines = [(f"{path}:{number}", line) for number, line in enumerate(content.split("\n"), start=1)]
    return [(place, line.strip()) for place, line in lines if line.strip()]


def prompted(items: Sequence[WorkItem], path: Path) -> List[WorkItem]:
    """Images with the prompts of a file, a line for each; an empty line is a free caption.

    Raises:
        InputError: the file cannot be read, or has not as many lines as there are images.
    """
    prompts = [line.strip() for line in _content("--prompt-file", path).splitlines()]
    if len(prompts) != len(items):
        raise InputError(
            f"--prompt-file {path}: {len(prompts)} lines for {len(items)} images; write one for "
            "each, or a table (--csv)"
        )
    return [
        WorkItem(item.image, (prompt,), (f"{path}:{number}",))
        for number, (item, prompt) in enumerate(zip(items, prompts), start=1)
    ]


def _content(option: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors=NOT_UNICODE)
    except (OSError, ValueError) as error:
        raise InputError(f"{option} {path}: cannot be read ({error})") from None
