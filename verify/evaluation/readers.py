"""Readers of the data sets' own formats, each a stream into the index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from configs.errors import InputError
from configs.load import shown
from configs.schema import Task
from pipeline.csv_file import CsvFile, open_csv
from verify.evaluation.index import Builder
from verify.evaluation.json_records import (
    Record,
    first_byte,
    id_of,
    list_of,
    open_json,
    records,
    text_of,
)

#: How COCO names the image of a number, by year; {subset} is VQAv2's ``data_subtype``.
_COCO_NAMES = ("COCO_{subset}_{number:012d}.jpg", "{number:012d}.jpg", "{number}.jpg")

#: Columns of a CSV file that are needed for each task, besides ``image``.
CSV_COLUMNS: dict[Task, tuple[tuple[str, ...], ...]] = {
    "caption": (("caption",),),
    "vqa": (("question", "answer"),),
    "itm": (("text", "match"), ("caption",)),
}
_NEEDED = "image once, and caption, or question and answer, or text and match"
#: Separates several annotators' answers in one CSV field.
ANSWER_SEPARATOR = "|"
_TRUE, _FALSE = {"1", "true", "yes"}, {"0", "false", "no"}


def read_coco_captions(path: Path, images: Path) -> Callable[[Builder], None]:
    """COCO captions: ``images`` (id, file_name) and ``annotations`` (image_id, caption)."""

    def read(builder: Builder) -> None:
        for place, record in records(path, "images"):
            name = text_of(record, "file_name", place)
            builder.image(id_of(record, "id", place), images / name, f"{place}.file_name")
        for place, record in records(path, "annotations"):
            image = id_of(record, "image_id", place)
            builder.text(image, text_of(record, "caption", place), f"{place}.image_id {image}")

    return read


def read_karpathy(path: Path, images: Path, split: str) -> Callable[[Builder], None]:
    """Karpathy's splits of COCO and Flickr30k, and the lists per split that BLIP was tested on."""

    def read(builder: Builder) -> None:
        if first_byte(path) == "[":
            for place, record in records(path, ""):
                name = text_of(record, "image", place)
                builder.image(name, images / name, f"{place}.image")
                for number, text in enumerate(list_of(record, "caption", place)):
                    builder.text(name, _text(text, f"{place}.caption[{number}]"), place)
            return
        splits: set[str] = set()
        found = False
        for place, record in records(path, "images"):
            name = text_of(record, "filename", place)
            belongs = text_of(record, "split", place)
            splits.add(belongs)
            if belongs != split:
                continue
            found = True
            folder = record.get("filepath", "")
            relative = f"{folder}/{name}" if isinstance(folder, str) and folder else name
            builder.image(relative, images / relative, f"{place}.filename")
            for number, sentence in enumerate(list_of(record, "sentences", place)):
                where = f"{place}.sentences[{number}]"
                if not isinstance(sentence, dict):
                    raise InputError(f"{where}: must be an object; correct or remove it")
                builder.text(relative, text_of(sentence, "raw", where), where)
        if not found:
            raise InputError(
                f"{shown(path)}: images: none is in split {split!r}; "
                f"choose from: {', '.join(sorted(splits))}"
            )

    return read


def read_vqa(path: Path, questions: Path, images: Path) -> Callable[[Builder], None]:
    """VQAv2: a file of questions and one of annotations."""

    def read(builder: Builder) -> None:
        first_byte(questions)
        subset = _subset(questions)
        pattern: str | None = None
        for place, record in records(questions, "questions"):
            image = id_of(record, "image_id", place)
            pattern = pattern or _pattern(images, image, subset, f"{place}.image_id")
            path_of_image = images / _image_name(pattern, image, subset)
            builder.image(image, path_of_image, f"{place}.image_id", again=True)
            key = id_of(record, "question_id", place)
            builder.question(key, image, text_of(record, "question", place), place)
        for place, record in records(path, "annotations"):
            given = []
            for number, answer in enumerate(list_of(record, "answers", place)):
                where = f"{place}.answers[{number}]"
                if not isinstance(answer, dict):
                    raise InputError(f"{where}: must be an object; correct or remove it")
                given.append(_answer(answer, where))
            if not any(given):
                raise InputError(f"{place}.answers: all are empty; correct or remove the question")
            key = id_of(record, "question_id", place)
            builder.answers(key, given, f"{place}.question_id", questions)

    return read


def csv_tasks(path: Path) -> tuple[Task, ...]:
    """Tasks that a CSV file's columns allow.

    Raises:
        InputError: not a CSV file, or without the columns of any task.
    """
    columns = _opened(path).columns
    return tuple(
        task
        for task, choices in CSV_COLUMNS.items()
        if any(set(needed) <= set(columns) for needed in choices)
    )


def read_csv(path: Path, images: Path, task: Task) -> Callable[[Builder], None]:
    """A CSV file: ``image`` and ``caption``, ``question``, ``answer``, or ``text``, ``match``.

    Several rows may be about one image; several answers to a question are separated by ``|``.
    """

    def read(builder: Builder) -> None:
        for line, row in _opened(path).rows():
            place = f"{shown(path)}: line {line}"
            name = _field(row, "image", place)
            builder.image(name, images / name, f"{place}: image", again=True)
            if task == "vqa":
                key = f"line {line}"
                builder.question(key, name, _field(row, "question", place), place)
                given = _field(row, "answer", place).split(ANSWER_SEPARATOR)
                builder.answers(key, [answer.strip() for answer in given], place, path)
            elif task == "itm" and "match" in row:
                match = _field(row, "match", place).lower()
                if match not in _TRUE | _FALSE:
                    raise InputError(f"{place}: match: {match!r}; write 1 or 0")
                builder.pair(name, _field(row, "text", place), match in _TRUE, place)
            else:
                builder.text(name, _field(row, "caption", place), place)

    return read


def find_csv(path: Path) -> Path:
    """The CSV file that a path means: itself, or the only one in the folder.

    Raises:
        InputError: none, or several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{shown(path)}: no such file or folder; name one with a CSV file")
    found = sorted(path.glob("*.csv"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise InputError(f"{shown(path)}: needs one CSV file, has {names}; name the file itself")
    return found[0]


def _opened(path: Path) -> CsvFile:
    file = open_csv(path, _NEEDED)
    if "image" not in file.columns:
        raise InputError(
            f"{shown(path)}: line 1: columns {', '.join(file.columns)}; name {_NEEDED}"
        )
    return file


def _field(row: dict[str, str], name: str, place: str) -> str:
    value = row.get(name, "")
    if not value:
        raise InputError(f"{place}: {name}: is empty; fill it in or remove the line")
    return value


def _answer(record: Record, place: str) -> str:
    """An annotator may have had nothing to say; that answer fits no other."""
    value = record.get("answer")
    if not isinstance(value, str):
        raise InputError(f"{place}.answer: must be a text; correct the file")
    return value.strip()


def _text(value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place}: must be a text that is not empty; correct the file")
    return value


def _subset(questions: Path) -> str:
    import ijson

    with open_json(questions) as stream:
        try:
            return str(next(iter(ijson.items(stream, "data_subtype")), "val2014"))
        except ijson.JSONError:
            return "val2014"  # the records' reader says where the file is broken


def _pattern(images: Path, image: str, subset: str, place: str) -> str:
    names = [_image_name(pattern, image, subset) for pattern in _COCO_NAMES]
    for pattern, name in zip(_COCO_NAMES, names, strict=True):
        if (images / name).is_file():
            return pattern
    raise InputError(
        f"{place}: {image}: no image of it in {shown(images)} "
        f"(looked for {', '.join(dict.fromkeys(names))}); name the folder with --images"
    )


def _image_name(pattern: str, image: str, subset: str) -> str:
    if not image.isdigit():
        return f"{image}.jpg"
    return pattern.format(subset=subset, number=int(image))
