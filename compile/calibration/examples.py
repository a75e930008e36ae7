"""What integers are calibrated with: scenes of the training split, or a user's own folder."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from configs.errors import InputError
from configs.layout import REPOSITORY_ROOT
from configs.load import shown
from configs.manifest import file_sha256, key_of
from configs.scenes import CAPTION_PROMPT, draw, make_scene, matching_pairs, questions
from configs.schema import CalibrationConfig, Task

#: ``calibration.source`` for the procedural scenes.
SCENES = "scenes"
QUESTIONS_FILE = "questions.csv"
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
#: Scenes between the samples of two seeds.
_STRIDE = 100_000


@dataclass(frozen=True)
class Example:
    """One picture and what is asked about it: prompt, question or text."""

    name: str
    image: Image.Image
    text: str


def examples(calibration: CalibrationConfig, task: Task) -> Iterator[Example]:
    """The calibration examples of a task, ``calibration.samples`` at most.

    Raises:
        InputError: the folder is missing, empty, or lacks the questions that the task needs.
    """
    if calibration.source == SCENES:
        yield from _scene_examples(calibration, task)
    else:
        yield from _folder_examples(calibration, task)


def examples_digest(calibration: CalibrationConfig, task: Task) -> str:
    """Digest of everything that decides the examples; reads files, draws nothing."""
    data: dict[str, Any] = {"calibration": calibration.model_dump(mode="json"), "task": task}
    if calibration.source != SCENES:
        folder = _folder(calibration)
        listed = [*_images(folder), folder / QUESTIONS_FILE]
        data["files"] = {path.name: file_sha256(path) for path in listed if path.is_file()}
    return key_of(data)


def _scene_examples(calibration: CalibrationConfig, task: Task) -> Iterator[Example]:
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


def _folder_examples(calibration: CalibrationConfig, task: Task) -> Iterator[Example]:
    folder = _folder(calibration)
    images = _images(folder)
    if not images:
        raise InputError(f"{shown(folder)}: calibration.source: no images; put some there")
    table = folder / QUESTIONS_FILE
    if table.is_file():
        pairs = _table(table)
    elif task == "caption":
        pairs = [(path.name, "") for path in images]
    else:
        raise InputError(
            f"{shown(table)}: missing; task {task} needs texts to calibrate with: "
            "columns image,question"
        )
    order = np.random.default_rng(calibration.seed).permutation(len(pairs))
    for index in order[: calibration.samples]:
        name, text = pairs[int(index)]
        yield Example(name, _open(folder / name), text)


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


def _table(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{shown(path)}: cannot be read ({error}); save it as UTF-8") from None
    pairs = []
    for number, row in enumerate(rows, start=2):
        name, text = row.get("image"), row.get("question")
        if not name or text is None:
            raise InputError(f"{shown(path)}: line {number}: needs columns image,question")
        if Path(name).name != name or not (path.parent / name).is_file():
            raise InputError(f"{shown(path)}: line {number}: no image {name!r} in this folder")
        pairs.append((name, text))
    if not pairs:
        raise InputError(f"{shown(path)}: no rows; give at least one image and question")
    return pairs


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{shown(path)}: not a readable image ({error}); replace it") from None
