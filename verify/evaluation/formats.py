"""The data sets' own formats: files of annotations in, items out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.load import shown
from configs.schema import Task
from pipeline.csv_file import CsvFile, open_csv
from verify.evaluation.items import CaptionItem, Item, MatchingItem, Picture, QuestionItem

Record = dict[str, Any]

#: How COCO names the image of a number, by year; {subset} is VQAv2's ``data_subtype``.
_COCO_NAMES = ("COCO_{subset}_{number:0>12}.jpg", "{number:0>12}.jpg", "{number}.jpg")
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
#: How far a wrong text for matching is looked for before an image goes without one.
_NEGATIVE_TRIES = 20


@dataclass
class AnnotatedImage:
    """An image and everything that a data set says about it."""

    name: str
    picture: Picture
    texts: list[str] = field(default_factory=list)
    #: text and whether it matches
    pairs: list[tuple[str, bool]] = field(default_factory=list)
    questions: list[QuestionItem] = field(default_factory=list)


#: Images by id, in the file's order.
Images = dict[str, AnnotatedImage]


def items_of(task: Task, images: Images, prompt: str, file: Path) -> tuple[Item, ...]:
    """The items of a task, by image.

    Raises:
        InputError: there are none.
    """
    found: list[Item] = []
    if task == "vqa":
        found += [question for image in images.values() for question in image.questions]
    elif task == "caption":
        found += [
            CaptionItem(image.name, image.picture, prompt, tuple(image.texts))
            for image in images.values()
            if image.texts
        ]
    else:
        chosen = [image for image in images.values() if image.texts or image.pairs]
        found += [_matching(number, chosen) for number in range(len(chosen))]
    if not found:
        raise InputError(f"{shown(file)}: nothing for {task} in it; name another file")
    return tuple(found)


def _matching(number: int, images: list[AnnotatedImage]) -> MatchingItem:
    image = images[number]
    pairs = image.pairs
    texts = dict.fromkeys((*image.texts, *(text for text, match in pairs if match)))
    if not pairs:
        texts = dict.fromkeys(image.texts)
        wrong = _wrong_text(number, images)
        pairs = [(image.texts[0], True), *([(wrong, False)] if wrong else [])]
    return MatchingItem(image.name, image.picture, tuple(texts), tuple(pairs))


def _wrong_text(number: int, images: list[AnnotatedImage]) -> str | None:
    # Any other image's first text, always the same one: steps by a large prime reach them all.
    for attempt in range(_NEGATIVE_TRIES):
        other = (number * 7919 + 104_729 * (attempt + 1)) % len(images)
        texts = images[other].texts
        if other != number and texts and texts[0] not in images[number].texts:
            return texts[0]
    return None


def read_coco_captions(path: Path, folder: Path) -> Images:
    """COCO captions: ``images`` (id, file_name) and ``annotations`` (image_id, caption).

    Raises:
        InputError: the file cannot be used; the message names file and key.
    """
    data, images = _json(path), Images()
    for place, record in _records(data, "images", path):
        name, key = _text(record, "file_name", place), _id(record, "id", place)
        _add(images, key, folder / name, f"{place}.file_name")
    for place, record in _records(data, "annotations", path):
        key = _id(record, "image_id", place)
        text = _text(record, "caption", place)
        if key not in images:
            raise InputError(
                f"{place}.image_id {key}: names no image of this file; correct or remove it"
            )
        images[key].texts.append(text)
    return images


def read_karpathy(path: Path, folder: Path, split: str) -> Images:
    """Karpathy's splits of COCO and Flickr30k, and the lists per split that BLIP was tested on.

    Raises:
        InputError: the file cannot be used; the message names file and key.
    """
    data, images = _json(path), Images()
    if isinstance(data, list):
        for place, record in _records(data, "", path):
            name = _text(record, "image", place)
            image = _add(images, name, folder / name, f"{place}.image")
            for number, text in enumerate(_list(record, "caption", place)):
                image.texts.append(_not_empty(text, f"{place}.caption[{number}]"))
        return images
    splits: set[str] = set()
    for place, record in _records(data, "images", path):
        name, belongs = _text(record, "filename", place), _text(record, "split", place)
        splits.add(belongs)
        if belongs != split:
            continue
        parent = record.get("filepath", "")
        relative = f"{parent}/{name}" if isinstance(parent, str) and parent else name
        image = _add(images, relative, folder / relative, f"{place}.filename")
        for where, sentence in _objects(_list(record, "sentences", place), f"{place}.sentences"):
            image.texts.append(_text(sentence, "raw", where))
    if not images:
        raise InputError(
            f"{shown(path)}: images: none is in split {split!r}; "
            f"choose from: {', '.join(sorted(splits))}"
        )
    return images


def read_vqa(path: Path, questions: Path, folder: Path) -> Images:
    """VQAv2: a file of questions and one of annotations.

    Raises:
        InputError: a file cannot be used; the message names file and key.
    """
    asked = _json(questions)
    subset = asked.get("data_subtype", "val2014") if isinstance(asked, dict) else ""
    images, pattern = Images(), ""
    places: dict[str, tuple[str, str, str]] = {}
    for place, record in _records(asked, "questions", questions):
        key, number = _id(record, "image_id", place), _id(record, "question_id", place)
        if key not in images:
            pattern = pattern or _pattern(folder, key, subset, f"{place}.image_id")
            _add(images, key, folder / _image_name(pattern, key, subset), f"{place}.image_id")
        if number in places:
            raise InputError(f"{place}: question {number} is there twice; remove one")
        places[number] = place, key, _text(record, "question", place)
    del asked
    answers = _vqa_answers(path, questions, places.keys())
    for number, (place, key, text) in places.items():
        if number not in answers:
            raise InputError(f"{place}: has no answer in {shown(path)}; correct or remove it")
        item = QuestionItem(number, images[key].picture, text, answers[number])
        images[key].questions.append(item)
    return images


def _vqa_answers(path: Path, questions: Path, asked: Any) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    # An annotator may have had nothing to say; that answer fits no other.
    for place, record in _records(_json(path), "annotations", path):
        given = []
        for where, answer in _objects(_list(record, "answers", place), f"{place}.answers"):
            value = answer.get("answer")
            if not isinstance(value, str):
                raise InputError(f"{where}.answer: must be a text; correct the file")
            given.append(sys.intern(value.strip()))
        if not any(given):
            raise InputError(f"{place}.answers: all are empty; correct or remove the question")
        number = _id(record, "question_id", place)
        if number not in asked:
            raise InputError(
                f"{place}.question_id: {number} is not a question of {shown(questions)}"
            )
        found[number] = tuple(given)
    return found


def csv_tasks(path: Path) -> tuple[Task, ...]:
    """Tasks that a CSV file's columns allow.

    Raises:
        InputError: not a CSV file, or without a column of images.
    """
    columns = _opened(path).columns
    return tuple(
        task
        for task, choices in CSV_COLUMNS.items()
        if any(set(needed) <= set(columns) for needed in choices)
    )


def read_csv(path: Path, folder: Path, task: Task) -> Images:
    """A CSV file: ``image`` and ``caption``, ``question``, ``answer``, or ``text``, ``match``.

    Several rows may be about one image; several answers to a question are separated by ``|``.

    Raises:
        InputError: the file cannot be used; the message names file and line.
    """
    images = Images()
    for line, row in _opened(path).rows():
        place = f"{shown(path)}: line {line}"
        name = _field(row, "image", place)
        image = images.get(name) or _add(images, name, folder / name, f"{place}: image")
        if task == "vqa":
            question, answer = _field(row, "question", place), _field(row, "answer", place)
            given = tuple(one.strip() for one in answer.split(ANSWER_SEPARATOR))
            image.questions.append(QuestionItem(f"line {line}", image.picture, question, given))
        elif task == "itm" and "match" in row:
            match = _field(row, "match", place).lower()
            if match not in _TRUE | _FALSE:
                raise InputError(f"{place}: match: {match!r}; write 1 or 0")
            image.pairs.append((_field(row, "text", place), match in _TRUE))
        else:
            image.texts.append(_field(row, "caption", place))
    return images


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


def _add(images: Images, key: str, path: Path, place: str) -> AnnotatedImage:
    if key in images:
        raise InputError(f"{place}: image {key} is there twice; remove one")
    images[key] = AnnotatedImage(key, Picture(path=path, place=place))
    return images[key]


def _json(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"{shown(path)}: cannot be read ({reason}); name an existing file"
        ) from None
    if not data.strip():
        raise InputError(f"{shown(path)}: is empty; name a file with annotations")
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)}: not UTF-8 text ({error.reason})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shown(path)}: not valid JSON ({error}); copy the file again") from None


def _records(data: Any, key: str, path: Path) -> Iterator[tuple[str, Record]]:
    """``(file: key[number], record)`` of the list under ``key``, or of the data itself."""
    listed = data.get(key) if key and isinstance(data, dict) else data
    if not isinstance(listed, list) or not listed or (key and listed is data):
        raise InputError(f"{shown(path)}: {key or 'the list'}: missing or empty; name another file")
    return _objects(listed, f"{shown(path)}: {key}")


def _objects(listed: list[Any], place: str) -> Iterator[tuple[str, Record]]:
    for number, value in enumerate(listed):
        if not isinstance(value, dict):
            raise InputError(f"{place}[{number}]: must be an object; correct or remove it")
        yield f"{place}[{number}]", value


def _text(record: Record, key: str, place: str) -> str:
    return _not_empty(record.get(key), f"{place}.{key}")


def _not_empty(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place}: must be a text that is not empty; correct the file")
    return value


def _id(record: Record, key: str, place: str) -> str:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise InputError(f"{place}.{key}: must be a number or a text; correct the file")
    return str(value)


def _list(record: Record, key: str, place: str) -> list[Any]:
    value = record.get(key)
    if not isinstance(value, list) or not value:
        raise InputError(f"{place}.{key}: must be a list that is not empty; correct the file")
    return value


def _pattern(folder: Path, image: str, subset: Any, place: str) -> str:
    names = [_image_name(pattern, image, subset) for pattern in _COCO_NAMES]
    for pattern, name in zip(_COCO_NAMES, names, strict=True):
        if (folder / name).is_file():
            return pattern
    raise InputError(
        f"{place}: {image}: no image of it in {shown(folder)} "
        f"(looked for {', '.join(dict.fromkeys(names))}); name the folder with --images"
    )


def _image_name(pattern: str, image: str, subset: Any) -> str:
    if not image.isdecimal():
        return f"{image}.jpg"
    return pattern.format(subset=subset, number=image.lstrip("0") or "0")
