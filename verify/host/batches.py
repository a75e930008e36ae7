"""Several images and texts at once against one at a time: rows that get mixed up.

Whole answers of single cases never show which row an answer belongs to. Here two images have two
texts each, in one call of the runtime's own task classes on the exported graphs; every answer must
be the one that the same pair gets alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from configs.schema import Component
from configs.tolerances import load_tolerances
from pipeline.scenes import CAPTION_PROMPT, make_scene, matching_pairs
from runtime.files.manifests import ComponentManifest
from runtime.tasks.answering import QuestionAnswerer
from runtime.tasks.artifacts import Artifacts
from runtime.tasks.captioning import Captioner
from runtime.tasks.matching import Matcher
from runtime.tasks.registry import TASKS
from verify.answers.cases import Case, questions_by_length
from verify.artifacts import runtime_failures
from verify.host.finding import Finding
from verify.parity.inputs import Graphs, Recorder
from verify.parity.padding import padded_nets

BATCHES = "rows of a batch"
_BEAMS = 3


def compare_batches(
    graphs: Graphs,
    nets: Mapping[Component, ComponentManifest],
    cases: Sequence[Case],
    new_tokens: int,
) -> list[Finding]:
    """Two images at once, in dynamic nets and in nets of fixed lengths."""
    for form, manifests in (("", nets), ("fixed lengths: ", padded_nets(graphs.manifest, nets))):
        sessions: dict[str, Any] = {
            str(name): Recorder(manifest, graphs.sessions[name])
            for name, manifest in manifests.items()
        }
        with runtime_failures():
            task = TASKS[cases[0].task](Artifacts(graphs.manifest, sessions, "onnx", "f32"))
            for what in _mixed_up(task, cases[:2], new_tokens):
                return [Finding("generation", BATCHES, form + what)]
    return []


def _mixed_up(task: Any, cases: Sequence[Case], new_tokens: int) -> Iterator[str]:
    images = [case.image() for case in cases]
    asked: dict[str, Any] = {"max_new_tokens": new_tokens}
    if isinstance(task, Captioner):
        prompts = ["", CAPTION_PROMPT][: len(images)]
        for beams in (1, _BEAMS):
            asked["num_beams"] = beams
            found = task.batch(images, prompts, **asked)
            for case, image, prompt, caption in zip(cases, images, prompts, found, strict=True):
                right = task(image, prompt, **asked)
                if caption.token_ids != right.token_ids:
                    yield f"{case.name}: {caption.text!r}, alone {right.text!r}"
    elif isinstance(task, QuestionAnswerer):
        texts = [questions_by_length(case.scene, 4)[start::2] for start, case in enumerate(cases)]
        for beams in (1, _BEAMS):
            asked["num_beams"] = beams
            every = task.batch(images, texts, **asked)
            for case, image, own, answers in zip(cases, images, texts, every, strict=True):
                for text, one in zip(own, answers, strict=True):
                    alone = task(image, text, **asked)
                    if one.token_ids != alone.token_ids:
                        yield f"{case.name} {text!r}: {one.text!r}, alone {alone.text!r}"
    elif isinstance(task, Matcher):
        yield from _matching(task, cases)


def _matching(task: Matcher, cases: Sequence[Case]) -> Iterator[str]:
    own = [matching_pairs(make_scene(case.scene))[0].text for case in cases]
    yield from _table(task, cases, own)
    # The same text twice: images and texts that change places do not cancel out.
    yield from _table(task, cases, own[:1] * len(own))


def _table(task: Matcher, cases: Sequence[Case], texts: Sequence[str]) -> Iterator[str]:
    """Probabilities, cosines and ranks of every image with every text."""
    images = [case.image() for case in cases]
    allowed = load_tolerances().limit("batch_scores")
    pairs = task.pairs(images, [list(texts)] * len(images))
    ranking = task.rank(images, texts, top_k=len(texts))
    for row, (case, image) in enumerate(zip(cases, images, strict=True)):
        for column, text in enumerate(texts):
            alone = task(image, text)
            for kind, probability, cosine in (
                ("pair", pairs[row][column].probability, pairs[row][column].cosine),
                ("rank", ranking.probability[row, column], ranking.cosine[row, column]),
            ):
                off = max(abs(probability - alone.probability), abs(cosine - alone.cosine))
                if not off <= allowed:
                    yield f"{kind} of {case.name} and {text!r}: {off:.1e} off what it is alone"
        first = ranking.texts_for(row)[0]
        best = int(np.argmax(ranking.probability[row]))
        if ranking.probability[row, first] < ranking.probability[row, best]:
            yield f"rank of {case.name}: text {first} before the more probable {best}"
