"""Which whole answers are compared: held-out scenes and what is asked about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL.Image import Image

from configs.schema import Task
from pipeline.scenes import CAPTION_PROMPT, caption, draw, make_scene, matching_pairs, questions

#: Distance between the first scenes of two seeds; more scenes than any gate compares.
SEED_STRIDE = 10_000
#: Most tokens compared per caption and per answer: the longest caption has eleven words, the
#: longest answer two.
NEW_TOKENS: dict[Task, int] = {"caption": 20, "vqa": 10, "itm": 0}


@dataclass(frozen=True)
class Case:
    """One image and its text: a caption prompt (may be empty), a question, or a text to match."""

    task: Task
    scene: int
    text: str
    #: the right answer: caption, answer, or whether the text matches
    truth: str | bool

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"scene {self.scene}" + (f" {self.text!r}" if self.text else "")

    def image(self) -> Image:
        """The picture, RGB; shared by all callers, not to be changed."""
        return picture(self.scene)


@lru_cache(maxsize=256)
def picture(scene: int) -> Image:
    """One held-out scene, RGB; kept, because every target looks at the same ones."""
    return draw(make_scene(scene))


def generation_cases(task: Task, count: int, seed: int, first: int = 0) -> list[Case]:
    """``count`` cases of distinct held-out scenes; the first n of a longer list are the list of n.

    Captions alternate between no prompt and the training prompt. Questions walk through the
    lengths that a scene offers. Matching alternates between the right text and a hard negative.
    ``first`` counts from the seed's first scene.
    """
    first += seed * SEED_STRIDE
    return [_case(task, scene) for scene in range(first, first + count)]


def _case(task: Task, index: int) -> Case:
    scene = make_scene(index)
    if task == "caption":
        return Case(task, index, CAPTION_PROMPT if index % 2 else "", caption(scene))
    if task == "vqa":
        asked = sorted(questions(scene), key=lambda qa: (len(qa.question), qa.question))
        # Steps of five walk through short and long questions alike.
        chosen = asked[(index * 5) % len(asked)]
        return Case(task, index, chosen.question, chosen.answer)
    pairs = matching_pairs(scene)
    pair = pairs[0] if index % 2 == 0 else pairs[1 + (index // 2) % (len(pairs) - 1)]
    return Case(task, index, pair.text, pair.match)


def questions_by_length(scene: int, count: int) -> list[str]:
    """``count`` questions of one scene, from its shortest to its longest."""
    asked = sorted(
        {qa.question for qa in questions(make_scene(scene))},
        key=lambda text: (len(text.split()), text),
    )
    return _spread(asked, count)


def _spread(items: Sequence[str], count: int) -> list[str]:
    if count >= len(items):
        return list(items)
    if count == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def new_tokens(
    task: Task, past_tokens: int | None, text_tokens: int, maximum_positions: int
) -> int:
    """Most tokens to generate, so that a fixed cache holds prompt and answer on every target.

    Args:
        past_tokens: rows of the fixed cache.
        text_tokens: rows that a padded caption prompt takes; an answer starts from one token.
        maximum_positions: rows of the checkpoint's position table.
    """
    prompt = text_tokens if task == "caption" else 1
    room = min((past_tokens or 0) - prompt, maximum_positions - prompt)
    return max(1, min(NEW_TOKENS[task], room))
