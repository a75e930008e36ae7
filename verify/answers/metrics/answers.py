"""The VQA benchmark's soft accuracy (Antol et al., 2015), with its normalisation of answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

#: Annotators per question in the benchmark.
ANNOTATORS = 10
#: Annotators who must agree with an answer for it to count fully.
FULL_AGREEMENT = 3

_ARTICLES = {"a", "an", "the"}
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
#: The benchmark passes a flag where the number of replacements belongs; figures depend on it.
_MOST_PERIODS = 32

#: Answers lack one of these words' apostrophes; the benchmark puts it back.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


_APOSTROPHES = {
    shortened: word for word in _CONTRACTIONS.split() for shortened in _without_one_apostrophe(word)
} | {"somebody'd": "somebodyd"}  # the wrong way round in the benchmark, too


def normalised(answer: str) -> str:
    """An answer as the benchmark compares it: no punctuation, articles or number words."""
    return _words(_without_punctuation(_stripped(answer)))


def soft_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """Share of full agreement, each annotator left out once: min(1, others who agree / 3), mean.

    As the benchmark does it: unanimous annotators are compared literally, others normalised. A
    list shorter than ten is repeated, so that one right answer counts as ten annotators' answer.
    """
    if not annotators:
        return 0.0
    truths = [_stripped(text) for text in annotators]
    truths *= -(-ANNOTATORS // len(truths)) if len(truths) < ANNOTATORS else 1
    found = _stripped(answer)
    if len(set(truths)) > 1:
        truths = [_words(_without_punctuation(text)) for text in truths]
        found = _words(_without_punctuation(found))
    same = sum(text == found for text in truths)
    # Who agrees misses one of those who agree when left out; the others miss none.
    scores = [min(1.0, (same - (text == found)) / FULL_AGREEMENT) for text in truths]
    return sum(scores) / len(scores)


def exact_answer(answer: str, annotators: Sequence[str]) -> bool:
    """Whether the answer is, normalised, the annotators' most frequent one (or one of those)."""
    counts = Counter(normalised(text) for text in annotators)
    most = max(counts.values(), default=0)
    return most > 0 and counts[normalised(answer)] == most


def _stripped(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    found = text
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside_space or in_number else " ")
    return _PERIOD.sub("", found, count=_MOST_PERIODS)


def _words(text: str) -> str:
    numbers = [_NUMBERS.get(word, word) for word in text.lower().split()]
    kept = [word for word in numbers if word not in _ARTICLES]
    return " ".join(_APOSTROPHES.get(word, word) for word in kept)
