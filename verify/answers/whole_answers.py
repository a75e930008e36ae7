"""Whole answers of a target against the checkpoint's own: tokens, match decisions, scores."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL.Image import Resampling

from configs.precisions import Arithmetic
from configs.tolerances import Gate, ScoreTolerance, record
from runtime.preprocessing.images import ImageSource
from runtime.preprocessing.processor import TextTokenizer
from runtime.tasks.matching import Match
from runtime.tasks.task import Task as RuntimeTask
from verify.answers.cases import Case
from verify.artifacts import runtime_failures
from verify.checkpoint.answers import Answer
from verify.parity.compare import number
from verify.results import Check, Subject

#: Divergences that the verdict lists.
MOST_DIVERGENCES = 5
#: Answers that the verdict quotes whether they agree or not, for the report's side-by-side view.
QUOTED_EXAMPLES = 6
#: Characters of an answer that a message quotes.
MOST_CHARACTERS = 80


def generated_tokens(
    task: RuntimeTask[Any], cases: Sequence[Case], new_tokens: int
) -> list[tuple[int, ...]]:
    """Whole sequences, greedy, prompt and end token included, from the runtime's task classes."""
    images = [given_to(task, case) for case in cases]
    texts = [case.text for case in cases]
    with runtime_failures():
        return [one.token_ids for one in task.ask(images, texts, max_new_tokens=new_tokens)]


def match_scores(task: RuntimeTask[Any], cases: Sequence[Case]) -> list[Match]:
    """Matching probability and contrastive cosine per case."""
    with runtime_failures():
        images = [given_to(task, case) for case in cases]
        return task.ask(images, [case.text for case in cases])


def given_to(task: RuntimeTask[Any], case: Case) -> ImageSource:
    """A case's picture; where large JPEGs are decoded at a part of their size, as such a file.

    So the answers of a mode are judged with all that its users' pictures go through.
    """
    image = case.image()
    if not task.preprocessor.scaled_jpeg:
        return image
    wanted, size = task.preprocessor.settings, min(image.size)
    # Twice the least size that is decoded, so that it is decoded at a half.
    factor = 2 * math.ceil(2 * max(wanted.height, wanted.width) / size)
    enlarged = image.resize((image.width * factor, image.height * factor), Resampling.NEAREST)
    file = io.BytesIO()
    enlarged.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def token_check(
    subject: Subject,
    cases: Sequence[Case],
    expected: Sequence[Answer],
    found: Sequence[tuple[int, ...]],
    gate: Gate,
    tokenizer: TextTokenizer,
) -> Check:
    """Token for token, the end token included."""
    same = [answer.tokens == tokens for answer, tokens in zip(expected, found, strict=True)]
    divergences = [
        _divergence(case, answer, tokens, tokenizer)
        for case, answer, tokens, equal in zip(cases, expected, found, same, strict=True)
        if not equal
    ]
    rate = sum(same) / len(same) if same else 0.0
    problems = _below_gate("generations", rate, sum(same), len(same), gate)
    problems += [
        f"{d['case']}: {_short(d['found'])!r} instead of {_short(d['expected'])!r} "
        f"from token {d['token']} on"
        for d in (divergences[:2] if problems else [])
    ]
    if same and all(len(answer.tokens) <= answer.prompt + 1 for answer in expected):
        problems.append("every answer of the checkpoint is empty: comparing them proves nothing")
    metrics = {
        "exact_match_rate": rate,
        "exact": sum(same),
        "tokens_compared": sum(len(answer.tokens) for answer in expected),
        "distinct_answers": len({answer.tokens[answer.prompt :] for answer in expected}),
        "least_margin": min(
            (answer.margin for answer in expected if answer.margin is not None), default=None
        ),
        "accuracy": _accuracy(cases, expected, found, tokenizer),
        "checkpoint_accuracy": _accuracy(
            cases, expected, [answer.tokens for answer in expected], tokenizer
        ),
        "first_divergences": divergences[:MOST_DIVERGENCES],
        "examples": [
            {
                **_about(case),
                "expected": tokenizer.decode(answer.tokens),
                "found": tokenizer.decode(tokens),
                "same": equal,
            }
            for case, answer, tokens, equal in zip(cases, expected, found, same, strict=True)
        ][:QUOTED_EXAMPLES],
    }
    return Check(subject, len(same), metrics, gate_record(gate), tuple(problems))


def score_check(
    subject: Subject,
    cases: Sequence[Case],
    expected: Sequence[Answer],
    found: Sequence[Match],
    gate: Gate,
    tolerance: ScoreTolerance,
    arithmetic: Arithmetic,
) -> Check:
    """Decisions by gate; probabilities and cosines by tolerance."""
    probabilities = np.array([match.probability for match in found], dtype=np.float64)
    cosines = np.array([match.cosine for match in found], dtype=np.float64)
    wanted = np.array([answer.probability for answer in expected], dtype=np.float64)
    wanted_cosines = np.array([answer.similarity for answer in expected], dtype=np.float64)
    problems = []
    values = (probabilities, cosines, wanted, wanted_cosines)
    if not all(np.isfinite(array).all() for array in values):
        problems.append("a score is not finite")
    same = (probabilities > 0.5) == (wanted > 0.5)
    rate = float(same.mean()) if len(same) else 0.0
    problems += _below_gate("decisions", rate, int(same.sum()), len(same), gate)
    errors = {
        "probability": float(np.abs(probabilities - wanted).max(initial=0.0)),
        "similarity": float(np.abs(cosines - wanted_cosines).max(initial=0.0)),
    }
    bounds = {
        "probability": tolerance.max_probability_error,
        "similarity": tolerance.max_similarity_error,
    }
    for name, error in errors.items():
        if not error <= bounds[name]:
            problems.append(f"{name} error {error:.2e} exceeds {bounds[name]:.1e}")
    if len(wanted) > 1 and (np.ptp(wanted) == 0.0 or np.ptp(wanted_cosines) == 0.0):
        problems.append("the checkpoint gives every pair one score: comparing it proves nothing")
    truth = np.array([case.truth is True for case in cases])
    metrics: dict[str, Any] = {
        "decision_match_rate": rate,
        "max_probability_error": number(errors["probability"]),
        "max_similarity_error": number(errors["similarity"]),
        "accuracy": _share((probabilities > 0.5) == truth),
        "checkpoint_accuracy": _share((wanted > 0.5) == truth),
        "arithmetic": arithmetic,
        "first_divergences": [
            {
                "case": case.name,
                "expected": number(answer.probability or 0.0),
                "found": number(match.probability),
            }
            for case, answer, match, equal in zip(cases, expected, found, same, strict=True)
            if not equal
        ][:MOST_DIVERGENCES],
        "examples": [
            {
                **_about(case),
                "expected": number(answer.probability or 0.0),
                "found": number(match.probability),
                "same": bool(equal),
            }
            for case, answer, match, equal in zip(cases, expected, found, same, strict=True)
        ][:QUOTED_EXAMPLES],
    }
    scores = record(tolerance)
    limits = {**scores, "score_source": scores["source"], **gate_record(gate)}
    return Check(subject, len(same), metrics, limits, tuple(problems))


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 3] + "..."


def _about(case: Case) -> dict[str, Any]:
    return {"scene": case.scene, "text": case.text, "truth": case.truth}


def _below_gate(what: str, rate: float, same: int, total: int, gate: Gate) -> list[str]:
    if total and rate < gate.min_agreement:
        return [
            f"{same} of {total} {what} equal the checkpoint's, {gate.min_agreement:.2%} are needed"
        ]
    return []


def gate_record(gate: Gate) -> dict[str, Any]:
    """A gate as a verdict holds it."""
    return {"min_agreement": gate.min_agreement, "source": gate.source}


def _divergence(
    case: Case, answer: Answer, tokens: tuple[int, ...], tokenizer: TextTokenizer
) -> dict[str, Any]:
    pairs = zip(answer.tokens, tokens, strict=False)
    shorter = min(len(answer.tokens), len(tokens))
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
    return {
        "case": case.name,
        "token": first,
        "expected": tokenizer.decode(answer.tokens),
        "found": tokenizer.decode(tokens),
        "expected_tokens": list(answer.tokens),
        "found_tokens": list(tokens),
        # How close the checkpoint itself came to another answer.
        "least_margin": answer.margin,
    }


def _accuracy(
    cases: Sequence[Case],
    expected: Sequence[Answer],
    answers: Sequence[tuple[int, ...]],
    tokenizer: TextTokenizer,
) -> float:
    """Share of answers that say what is right about the scene, whatever the checkpoint says."""
    right = [
        tokenizer.decode(tokens[answer.prompt :]) == case.truth
        for case, answer, tokens in zip(cases, expected, answers, strict=True)
    ]
    return _share(np.array(right))


def _share(right: Any) -> float:
    return float(right.mean()) if len(right) else 0.0
