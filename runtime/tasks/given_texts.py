"""Texts that are given rather than generated: scored, or chosen from, by a task's decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, List, Optional, Sequence, Tuple

from ..errors import InputError
from ..generation.given import Given, GivenText
from ..generation.settings import GenerationSettings

#: BLIP's own ``k_test``: answers that are looked at whole, of those given.
CANDIDATES = 128
#: Most texts of one image that are scored at a time.
_AT_ONCE = 64
_WITH_ANSWERS = "num_return_sequences"


def choice(
    task: Any,
    *,
    given: Optional[Given] = None,
    answers: Optional[Sequence[str]] = None,
    answer_candidates: Optional[int] = None,
    **generation: Any,
) -> Tuple[GenerationSettings, Optional[Given]]:
    """How ``QuestionAnswerer`` is to search, or what it is to choose from.

    Raises:
        InputError: an answer or argument that cannot be used.
    """
    if answers is not None:
        return GenerationSettings(), _among(task, answers, answer_candidates, generation)
    if answer_candidates is not None:
        raise InputError("answer_candidates: does nothing without answers; leave it out")
    return task.settings(**generation), given


def _given_text(task: Any, text: Any, prompt_tokens: int) -> GivenText:
    """Reads a text that is given, as the decoder would produce it.

    Raises:
        InputError: empty, not Unicode, or longer than the artifact holds.
    """
    words = task.tokenizer.encode(text)[1:-1]
    if not words:
        raise InputError("a given text is empty; write something")
    ids = (*words, task.manifest.text.end_token_id)
    limit = task.session("text_decoder").capacity(task.manifest.text.maximum_positions)
    if prompt_tokens + len(ids) > limit:
        raise InputError(
            f"given text of {prompt_tokens + len(ids)} tokens, prompt included: this artifact "
            f"takes {limit}; shorten it"
        )
    return GivenText(text, ids)


def _among(task: Any, answers: Any, candidates: Optional[int], generation: Any) -> Given:
    """What ``answers`` asks for: the best of a list, by BLIP's own evaluation.

    Raises:
        InputError: an answer that cannot be used, or an argument that does nothing here.
    """
    if isinstance(answers, str) or not answers:
        raise InputError("answers: pass a list of at least one text")
    for name, value in generation.items():
        if name != _WITH_ANSWERS and value is not None:
            raise InputError(f"{name}: does nothing beside answers; leave it out")
    numbers = {
        "answer_candidates": CANDIDATES if candidates is None else candidates,
        _WITH_ANSWERS: generation.get(_WITH_ANSWERS) or 1,
    }
    for name, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise InputError(f"{name} {number!r}: must be a whole number of at least 1")
    texts = tuple(_given_text(task, text, 1) for text in answers)
    return Given((texts,), numbers["answer_candidates"], numbers[_WITH_ANSWERS])


def scored(task: Any, images: Any, asked: Any, texts: Any, prompts: bool, **options: Any) -> Any:
    """The results of ``score``: a list if any argument is one, else one.

    ``asked`` are prompts or, where ``prompts`` is false, questions.

    Raises:
        InputError: an image or text that cannot be used, or lists of different lengths.
    """
    several = [len(one) for one in (images, asked, texts) if isinstance(one, (list, tuple))]
    if len(set(several)) > 1:
        raise InputError(f"score: lists of {' and '.join(map(str, several))}; pass as many of each")
    count = several[0] if several else 1
    columns = [
        list(one) if isinstance(one, (list, tuple)) else [one] * count
        for one in (images, asked, texts)
    ]
    pictures: List[Any] = []
    questions: List[List[Any]] = []
    given: List[Tuple[GivenText, ...]] = []
    for image, question, text in zip(*columns):
        if not pictures or pictures[-1] is not image:
            pictures.append(image)
            questions.append([])
        prompt = len(task.tokenizer.prompt(question)) if prompts else 1
        one = _given_text(task, text, prompt)
        mine = questions[-1]
        if mine and mine[-1] == question and len(given[-1]) < _AT_ONCE:
            given[-1] += (one,)
        else:
            mine.append(question)
            given.append((one,))
    found = task.pairs(pictures, questions, given=Given(tuple(given)), **options)
    flat = [result for results in found for best in results for result in _each(best)]
    return flat if several else flat[0]


def _each(best: Any) -> Sequence[Any]:
    return [replace(best, alternatives=()), *best.alternatives]
