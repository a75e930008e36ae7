"""An index on the disk over a data set's annotations: sorted by image, read item by item.

Annotation files list images, captions and questions apart from each other, and may be larger than
memory. They are read once, in a stream, into SQLite; items are then fetched by number.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from configs.errors import InputError, ToolError
from configs.load import shown
from configs.schema import DataSetKind, Task
from pipeline.atomic import replacing
from verify.evaluation.items import CaptionItem, DataSet, Item, MatchingItem, Picture, QuestionItem

#: Part of every identity; raise it when the meaning of an index changes.
INDEX_VERSION = 1
#: How far a wrong text for matching is looked for before an image goes without one.
_NEGATIVE_TRIES = 20

_TABLES = """
CREATE TABLE images (id TEXT PRIMARY KEY, path TEXT NOT NULL, place TEXT NOT NULL, number INTEGER);
CREATE TABLE texts (image TEXT NOT NULL, text TEXT NOT NULL, place TEXT NOT NULL);
CREATE TABLE pairs (image TEXT NOT NULL, text TEXT NOT NULL, match INTEGER NOT NULL, place TEXT);
CREATE TABLE questions (id TEXT PRIMARY KEY, image TEXT NOT NULL, question TEXT NOT NULL,
  answers TEXT, place TEXT NOT NULL);
CREATE TABLE items (number INTEGER PRIMARY KEY, key TEXT NOT NULL);
"""
#: Items of each task, in the order of the images.
_ITEMS: dict[Task, str] = {
    "caption": "SELECT id FROM images WHERE id IN (SELECT image FROM texts) ORDER BY number",
    "itm": "SELECT id FROM images WHERE id IN (SELECT image FROM texts) "
    "OR id IN (SELECT image FROM pairs) ORDER BY number",
    "vqa": "SELECT questions.id AS id FROM questions JOIN images ON images.id = questions.image "
    "ORDER BY images.number, questions.rowid",
}


class Builder:
    """What a reader fills; every method refuses what contradicts the rest of the data set."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._images = 0

    def image(self, key: str, path: Path, place: str, *, again: bool = False) -> None:
        """An image; ``again`` allows it to be named several times.

        Raises:
            InputError: two images of one id.
        """
        values = (key, str(path), place, self._images)
        ignore = "OR IGNORE " if again else ""
        try:
            self._database.execute(f"INSERT {ignore}INTO images VALUES (?, ?, ?, ?)", values)  # noqa: S608
        except sqlite3.IntegrityError:
            raise InputError(f"{place}: image {key} is there twice; remove one") from None
        self._images += 1

    def text(self, image: str, text: str, place: str) -> None:
        """A caption of an image."""
        self._database.execute("INSERT INTO texts VALUES (?, ?, ?)", (image, text, place))

    def pair(self, image: str, text: str, match: bool, place: str) -> None:
        """A text that fits an image or does not."""
        row = (image, text, int(match), place)
        self._database.execute("INSERT INTO pairs VALUES (?, ?, ?, ?)", row)

    def question(self, key: str, image: str, question: str, place: str) -> None:
        """A question about an image.

        Raises:
            InputError: two questions of one id.
        """
        try:
            self._database.execute(
                "INSERT INTO questions VALUES (?, ?, ?, NULL, ?)", (key, image, question, place)
            )
        except sqlite3.IntegrityError:
            raise InputError(f"{place}: question {key} is there twice; remove one") from None

    def answers(self, question: str, answers: list[str], place: str, questions_file: Path) -> None:
        """The annotators' answers to a question.

        Raises:
            InputError: there is no such question.
        """
        done = self._database.execute(
            "UPDATE questions SET answers = ? WHERE id = ?", (json.dumps(answers), question)
        )
        if done.rowcount == 0:
            raise InputError(f"{place}: {question} is not a question of {shown(questions_file)}")

    def finish(self, task: Task, annotations: Path) -> int:
        """Numbers the items; returns how many there are.

        Raises:
            InputError: an id that nothing else has, a question without an answer, or no item.
        """
        self._refuse("texts", "image NOT IN (SELECT id FROM images)", "names no image of this file")
        self._refuse("questions", "answers IS NULL", f"has no answer in {shown(annotations)}")
        self._database.execute("CREATE INDEX texts_image ON texts (image)")
        self._database.execute("CREATE INDEX pairs_image ON pairs (image)")
        self._database.execute(
            f"INSERT INTO items SELECT row_number() OVER () - 1, id FROM ({_ITEMS[task]})"  # noqa: S608
        )
        (count,) = self._database.execute("SELECT count(*) FROM items").fetchone()
        if count == 0:
            raise InputError(f"{shown(annotations)}: nothing for {task} in it; name another file")
        return int(count)

    def _refuse(self, table: str, condition: str, what: str) -> None:
        row = self._database.execute(
            f"SELECT place FROM {table} WHERE {condition} LIMIT 1"  # noqa: S608 - our own words
        ).fetchone()
        if row:
            raise InputError(f"{row[0]}: {what}; correct or remove it")


@dataclass(frozen=True)
class IndexedItems(DataSet):
    """A data set read from files, through its index."""

    task: Task
    kind: DataSetKind
    name: str
    source: str
    identity: str
    available: int
    index: Path
    prompt: str = ""

    def items(self, start: int, stop: int) -> Iterator[Item]:
        """See ``DataSet.items``."""
        with closing(_open(self.index)) as database:
            keys = database.execute(
                "SELECT number, key FROM items WHERE number >= ? AND number < ? ORDER BY number",
                (start, stop),
            )
            for number, key in keys:
                yield self._item(database, number, key)

    def _item(self, database: sqlite3.Connection, number: int, key: str) -> Item:
        if self.task == "vqa":
            image, question, answers = database.execute(
                "SELECT image, question, answers FROM questions WHERE id = ?", (key,)
            ).fetchone()
            return QuestionItem(
                key, _picture(database, image), question, tuple(json.loads(answers))
            )
        texts = _texts(database, key)
        if self.task == "caption":
            return CaptionItem(key, _picture(database, key), self.prompt, texts)
        rows = database.execute("SELECT text, match FROM pairs WHERE image = ?", (key,)).fetchall()
        pairs = tuple((text, bool(match)) for text, match in rows)
        if pairs:
            texts = tuple(dict.fromkeys((*texts, *(text for text, match in pairs if match))))
        elif texts:
            wrong = self._wrong_text(database, number, texts)
            pairs = ((texts[0], True), *(((wrong, False),) if wrong else ()))
        return MatchingItem(key, _picture(database, key), texts, pairs)

    def _wrong_text(
        self, database: sqlite3.Connection, number: int, texts: tuple[str, ...]
    ) -> str | None:
        # Any other image's first text, always the same one: steps by a large prime reach them all.
        for attempt in range(_NEGATIVE_TRIES):
            other = (number * 7919 + 104_729 * (attempt + 1)) % self.available
            row = database.execute(
                "SELECT text FROM texts JOIN items ON items.key = texts.image "
                "WHERE items.number = ? ORDER BY texts.rowid LIMIT 1",
                (other,),
            ).fetchone()
            if row and other != number and row[0] not in texts:
                return str(row[0])
        return None


def build_index(path: Path, task: Task, annotations: Path, read: Callable[[Builder], None]) -> int:
    """Builds an index, or counts the items of the one that is there.

    Raises:
        InputError: the annotations cannot be used.
        ToolError: the disk is full or the folder cannot be written.
    """
    if path.is_file():
        with closing(_open(path)) as database:
            return int(database.execute("SELECT count(*) FROM items").fetchone()[0])
    try:
        with replacing(path) as temporary, closing(sqlite3.connect(temporary)) as database:
            # Thrown away if anything goes wrong: no journal needed.
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            database.executescript(_TABLES)
            builder = Builder(database)
            read(builder)
            count = builder.finish(task, annotations)
            database.commit()
    except sqlite3.OperationalError as error:
        raise ToolError(f"{path}: cannot be written ({error}); free space or rights") from None
    return count


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True)


def _picture(database: sqlite3.Connection, image: str) -> Picture:
    path, place = database.execute(
        "SELECT path, place FROM images WHERE id = ?", (image,)
    ).fetchone()
    return Picture(path=Path(path), place=place)


def _texts(database: sqlite3.Connection, image: str) -> tuple[str, ...]:
    rows = database.execute("SELECT text FROM texts WHERE image = ? ORDER BY rowid", (image,))
    return tuple(text for (text,) in rows)
