"""Held-out scenes with the answer of every target side by side, from the stored verdict."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from pipeline.scenes import draw, make_scene
from verify.page.checks import Row
from verify.page.figures import is_number, task_name

#: Longest side of an embedded picture, in pixels.
LONGEST_SIDE = 320
#: Above this a picture is stored as JPEG, in bytes.
LARGEST_PNG_BYTES = 40_000


@dataclass(frozen=True)
class Answer:
    """What one target says; ``same`` is None for rows that are not compared."""

    text: str
    same: bool | None = None


@dataclass(frozen=True)
class Question:
    """One column: a task and what is asked of it."""

    task: str
    heading: str
    asked: str


@dataclass(frozen=True)
class Sample:
    """One scene with everybody's answers."""

    scene: int
    image: str
    alt: str
    width: int
    height: int
    questions: list[Question]
    #: (who, one answer per question or None)
    answers: list[tuple[str, list[Answer | None]]]

    @property
    def differing(self) -> int:
        """How many targets give another answer than the checkpoint."""
        return sum(_differs(row) for _, row in self.answers)

    @property
    def agrees(self) -> bool:
        """Whether every target gives the checkpoint's answers."""
        return self.differing == 0

    @property
    def ways(self) -> int:
        """Ways of running that answered."""
        return len(self.answers) - 2

    @property
    def shown(self) -> list[tuple[str, list[Answer | None]]]:
        """The right answer, the checkpoint's, and all that differ from it."""
        rest = [(who, row) for who, row in self.answers[2:] if _differs(row)]
        return [*self.answers[:2], *rest]


def _differs(row: list[Answer | None]) -> bool:
    return any(answer and answer.same is False for answer in row)


#: task -> what each check quotes of one scene
_Quoted = dict[str, list[tuple[Row, dict[str, Any]]]]


def samples(every: Sequence[Row]) -> list[Sample]:
    """The scenes that the verdict quotes, in order."""
    scenes: dict[int, _Quoted] = {}
    for row in every:
        for example in row.metrics.get("examples") or []:
            quoted = scenes.setdefault(int(example["scene"]), {})
            quoted.setdefault(row.task, []).append((row, example))
    return [_sample(scene, quoted) for scene, quoted in sorted(scenes.items())]


def _sample(scene: int, quoted: _Quoted) -> Sample:
    image = draw(make_scene(scene))
    first = {task: answers[0][1] for task, answers in quoted.items()}
    truth = first["caption"]["truth"] if "caption" in first else "a procedural scene"
    answers: list[tuple[str, list[Answer | None]]] = [
        (who, [Answer(_words(task, example[key])) for task, example in first.items()])
        for who, key in (("right answer", "truth"), ("checkpoint", "expected"))
    ]
    for name in dict.fromkeys(row.way.name for mine in quoted.values() for row, _ in mine):
        answers.append((name, [_answer(task, name, mine) for task, mine in quoted.items()]))
    return Sample(
        scene=scene,
        image=embedded(image),
        alt=f"Scene {scene}: {truth}",
        width=image.width,
        height=image.height,
        questions=[
            Question(task, task_name(task), _asked(task, str(example["text"])))
            for task, example in first.items()
        ],
        answers=answers,
    )


def _answer(task: str, name: str, quoted: list[tuple[Row, dict[str, Any]]]) -> Answer | None:
    for row, example in quoted:
        if row.way.name == name:
            return Answer(_words(task, example["found"]), bool(example["same"]))
    return None


def _asked(task: str, text: str) -> str:
    if task == "caption":
        return f"prompt “{text}”" if text else "no prompt"
    return text if task == "vqa" else f"“{text}”"


def _words(task: str, value: Any) -> str:
    if task != "itm":
        return str(value)
    if isinstance(value, bool):
        return "match" if value else "no match"
    if not is_number(value):
        return "not a number"
    return f"{'match' if value > 0.5 else 'no match'}, {value:.4f}"


def embedded(image: Image.Image) -> str:
    """A picture as a data URI: PNG where small, else JPEG."""
    picture = image.convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    stream = io.BytesIO()
    kind = "png"
    picture.save(stream, "PNG", optimize=True)
    if stream.tell() > LARGEST_PNG_BYTES:
        stream, kind = io.BytesIO(), "jpeg"
        picture.save(stream, "JPEG", quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
