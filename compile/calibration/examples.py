"""What integers are calibrated with: scenes of the training split, or a user's own folder.

One source for all targets. Loads numpy and Pillow only when pictures are made: an unchanged run
needs the digests alone.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import InputError
from configs.layout import REPOSITORY_ROOT
from configs.load import shown
from configs.manifest import file_sha256, key_of
from configs.schema import CalibrationConfig, Task

if TYPE_CHECKING:
    from PIL.Image import Image

#: ``calibration.source`` for the procedural scenes.
SCENES = "scenes"
QUESTIONS_FILE = "questions.csv"
_COLUMNS = ("image", "question")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
#: Modules of runtime/ that turn examples into what nets are fed.
_FEEDING = ("caches", "decoding", "images", "preprocessing", "tokenization")
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
    for name, text in _chosen(calibration, folder, task):
        yield Example(name, _open(folder / name), text)


def images(calibration: CalibrationConfig) -> Iterator[Image]:
    """The pictures alone, each once, for nets that see nothing else; no texts are needed.

    Raises:
        InputError: the folder is missing or empty.
    """
    if calibration.source == SCENES:
        yield from (one.image for one in _scene_examples(calibration, "caption"))
        return
    folder = _folder(calibration)
    for name in dict.fromkeys(name for name, _ in _chosen(calibration, folder, None)):
        yield _open(folder / name)


def examples_digest(calibration: CalibrationConfig, task: Task | None) -> str:
    """Digest of everything that decides the examples; reads files, draws nothing.

    ``task`` is None for pictures alone.

    Raises:
        InputError: as :func:`examples`, before any work is done.
    """
    runtime = REPOSITORY_ROOT / "runtime"
    data: dict[str, Any] = {
        "calibration": calibration.model_dump(mode="json"),
        "task": task,
        "fed_by": {name: file_sha256(runtime / f"{name}.py") for name in _FEEDING},
    }
    if calibration.source != SCENES:
        folder = _folder(calibration)
        pairs = _chosen(calibration, folder, task)
        data["pairs"] = pairs
        data["files"] = {name: file_sha256(folder / name) for name, _ in pairs}
    return key_of(data)


def _scene_examples(calibration: CalibrationConfig, task: Task) -> Iterator[Example]:
    from configs.scenes import CAPTION_PROMPT, draw, make_scene, matching_pairs, questions

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


def _chosen(
    calibration: CalibrationConfig, folder: Path, task: Task | None
) -> list[tuple[str, str]]:
    """File names with their texts, in an order that the seed decides."""
    found = _images(folder)
    if not found:
        raise InputError(f"{shown(folder)}: calibration.source: no images; put some there")
    table = folder / QUESTIONS_FILE
    if table.is_file():
        pairs = _table(table, needs_texts=task in ("vqa", "itm"))
    elif task in ("caption", None):
        pairs = [(path.name, "") for path in found]
    else:
        raise InputError(
            f"{shown(table)}: missing; task {task} needs texts to calibrate with: "
            f"columns {','.join(_COLUMNS)}"
        )
    return random.Random(calibration.seed).sample(pairs, min(calibration.samples, len(pairs)))


def _folder(calibration: CalibrationConfig) -> Path:
    path = Path(calibration.source).expanduser()
    folder = path if path.is_absolute() else REPOSITORY_ROOT / path
    if not folder.is_dir():
        raise InputError(
            f"calibration.source: {calibration.source}: no such folder; "
            f"name a folder of images, or {SCENES}"
        )
    return folder


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)


def _table(path: Path, *, needs_texts: bool) -> list[tuple[str, str]]:
    try:
        # Spreadsheets put a byte order mark in front.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{shown(path)}: cannot be read ({error}); save it as UTF-8") from None
    pairs = []
    for number, row in enumerate(rows, start=2):
        name, text = (row.get(column) for column in _COLUMNS)
        if not name or text is None:
            raise InputError(f"{shown(path)}: line {number}: needs columns {','.join(_COLUMNS)}")
        if Path(name).name != name or not (path.parent / name).is_file():
            raise InputError(f"{shown(path)}: line {number}: no image {name!r} in this folder")
        if needs_texts and not text.strip():
            raise InputError(f"{shown(path)}: line {number}: no question; write one, or remove it")
        pairs.append((name, text))
    if not pairs:
        raise InputError(f"{shown(path)}: no rows; give at least one image and question")
    return pairs


def _open(path: Path) -> Image:
    from runtime.errors import BlipEdgeError
    from runtime.images import load_image

    try:
        return load_image(path)
    except BlipEdgeError as error:
        # The runtime's errors are not the pipeline's; the text is the same.
        raise InputError(f"calibration.source: not a readable image: {error}") from None
