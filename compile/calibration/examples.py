"""What integers are calibrated with: scenes of the training split, or a user's own folder.

One source for all targets. Loads numpy and Pillow only when pictures are made: an unchanged run
needs the digests alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import InputError
from configs.layout import REPOSITORY_ROOT
from configs.load import shown
from configs.schema import CalibrationConfig, Task
from pipeline.csv_file import open_csv
from pipeline.manifest import file_sha256, key_of
from pipeline.sources import source_digest
from runtime.files.image_names import IMAGE_SUFFIXES, image_files

if TYPE_CHECKING:
    from PIL.Image import Image

#: ``calibration.source`` for the procedural scenes.
SCENES = "scenes"
QUESTIONS_FILE = "questions.csv"
_COLUMNS = ("image", "question")
#: Scenes between the samples of two seeds.
_STRIDE = 100_000


@dataclass(frozen=True)
class Example:
    """One picture and what is asked about it: prompt, question or text."""

    name: str
    image: Image
    text: str


def examples(calibration: CalibrationConfig, task: Task) -> Iterator[Example]:
    """The calibration examples of a task, ``calibration.samples`` at most.

    Raises:
        InputError: the folder is missing, empty, or lacks the questions that the task needs.
    """
    if calibration.source == SCENES:
        yield from _scene_examples(calibration, task)
        return
    folder = _folder(calibration)
    for row in _chosen(calibration, folder, task):
        yield Example(row.name, _open(folder / row.name), row.text)


def images(calibration: CalibrationConfig) -> Iterator[Image]:
    """The pictures alone, each once, for nets that see nothing else; no texts are needed.

    Raises:
        InputError: the folder is missing or empty.
    """
    if calibration.source == SCENES:
        yield from (one.image for one in _scene_examples(calibration, "caption"))
        return
    folder = _folder(calibration)
    for name in dict.fromkeys(row.name for row in _chosen(calibration, folder, None)):
        yield _open(folder / name)


def examples_digest(calibration: CalibrationConfig, task: Task | None) -> str:
    """Digest of everything that decides the examples; reads files, draws nothing.

    ``task`` is None for pictures alone.

    Raises:
        InputError: as :func:`examples`, before any work is done.
    """
    unused = () if calibration.source == SCENES else ("pipeline.scenes",)
    data: dict[str, Any] = {
        "calibration": calibration.model_dump(mode="json"),
        "task": task,
        # What draws them and what turns them into what nets are fed.
        "sources": source_digest("compile.calibration.inputs", without=unused),
    }
    if calibration.source != SCENES:
        folder = _folder(calibration)
        rows = _chosen(calibration, folder, task)
        data["pairs"] = [(row.name, row.text) for row in rows]
        data["files"] = {row.name: _digest(folder / row.name) for row in rows}
    return key_of(data)


def _digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise InputError(
            f"{shown(path)}: cannot be read ({error.strerror}); replace or remove it"
        ) from None


def _scene_examples(calibration: CalibrationConfig, task: Task) -> Iterator[Example]:
    from pipeline.scenes import CAPTION_PROMPT, draw, make_scene, matching_pairs, questions

    start = calibration.seed * _STRIDE
    for number, index in enumerate(range(start, start + calibration.samples)):
        # Never the held-out split: that is what answers are measured on.
        scene = make_scene(index, "train")
        if task == "caption":
            texts = [CAPTION_PROMPT, ""]
        elif task == "vqa":
            texts = [asked.question for asked in questions(scene)]
        else:
            texts = [pair.text for pair in matching_pairs(scene)]
        yield Example(f"train scene {index}", draw(scene), texts[number % len(texts)])


def check_examples(
    calibration: CalibrationConfig, task: Task | None, check: Callable[[Example], None] | None
) -> None:
    """Opens every picture of a user's folder, and hands each example to ``check``.

    ``task`` is None for pictures alone. Scenes are right by construction.

    Raises:
        InputError: a picture cannot be read, or what ``check`` raises, with the table's line.
    """
    if calibration.source == SCENES:
        return
    folder = _folder(calibration)
    opened: dict[str, Image] = {}
    for row in _chosen(calibration, folder, task):
        if row.name not in opened:
            # Only whether it can be read matters, and not all pictures fit into memory.
            opened[row.name] = _open(folder / row.name).resize((1, 1))
        if check is not None:
            try:
                check(Example(row.name, opened[row.name], row.text))
            except InputError as error:
                raise InputError(f"{row.place}: {error}") from None


def example_count(calibration: CalibrationConfig, task: Task | None) -> int:
    """How many examples there really are: ``calibration.samples``, or all of a smaller folder.

    Raises:
        InputError: as :func:`examples`.
    """
    if calibration.source == SCENES:
        return calibration.samples
    return len(_chosen(calibration, _folder(calibration), task))


@dataclass(frozen=True)
class _Row:
    """One picture of a user's folder, its text, and where that stands."""

    name: str
    text: str
    place: str


def _chosen(calibration: CalibrationConfig, folder: Path, task: Task | None) -> list[_Row]:
    """Pictures with their texts, in an order that the seed decides."""
    found = image_files(folder.iterdir())
    if not found:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise InputError(
            f"{shown(folder)}: calibration.source: no images; put some there ({suffixes})"
        )
    table = folder / QUESTIONS_FILE
    if table.exists():
        rows = _table(table, needs_texts=task in ("vqa", "itm"))
    elif task in ("caption", None):
        rows = [_Row(path.name, "", shown(path)) for path in found]
    else:
        raise InputError(
            f"{shown(table)}: missing; task {task} needs texts to calibrate with: "
            f"columns {','.join(_COLUMNS)}"
        )
    return random.Random(calibration.seed).sample(rows, min(calibration.samples, len(rows)))


def _folder(calibration: CalibrationConfig) -> Path:
    path = Path(calibration.source).expanduser()
    folder = path if path.is_absolute() else REPOSITORY_ROOT / path
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise InputError(
            f"calibration.source: {calibration.source}: {what}; "
            f"name a folder of images, or {SCENES}"
        )
    return folder


def _table(path: Path, *, needs_texts: bool) -> list[_Row]:
    needed = ",".join(_COLUMNS)
    file = open_csv(path, needed)
    if not set(_COLUMNS) <= set(file.columns):
        raise InputError(
            f"{shown(path)}: line 1: columns {','.join(file.columns)}; "
            f"the first line must name {needed}"
        )
    rows: dict[tuple[str, str], _Row] = {}
    for line, fields in file.rows():
        place = file.place(line)
        name, text = (fields[column] for column in _COLUMNS)
        _check_name(path.parent, name, place)
        if needs_texts and not text:
            raise InputError(f"{place}: no question; write one, or remove the line")
        if (name, text) in rows:
            first = rows[name, text].place.rpartition(": ")[2]
            raise InputError(f"{place}: the same as {first}; remove one of them")
        rows[name, text] = _Row(name, text, place)
    return list(rows.values())


def _check_name(folder: Path, name: str, place: str) -> None:
    """Whether a table's image is a file right beside the table.

    Raises:
        InputError: it is not.
    """
    if not name:
        raise InputError(f"{place}: no image; write its file name, or remove the line")
    if Path(name).name != name or "\\" in name:
        raise InputError(
            f"{place}: image {name!r} is a path; put the image into this folder, "
            "and write its file name alone"
        )
    try:
        found = (folder / name).is_file()
    except OSError:
        # Longer than a file name can be: a quote that was closed lines later.
        found = False
    if not found:
        raise InputError(
            f"{place}: no image {name[:80]!r} in this folder; correct it, or remove the line"
        )


def _open(path: Path) -> Image:
    from runtime.errors import BlipEdgeError
    from runtime.preprocessing.images import load_image

    try:
        return load_image(path)
    except BlipEdgeError as error:
        # The runtime's errors are not the pipeline's; the text is the same.
        raise InputError(
            f"calibration.source: not a readable image, replace or remove it: {error}"
        ) from None
