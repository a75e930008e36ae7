"""OpenVINO: an answer does not depend on what else is in its batch, nor on other threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.scenes import draw, make_scene
from runtime import Captioner, Matcher, QuestionAnswerer
from runtime.sessions.openvino_session import OpenVinoSession
from runtime.tasks.task import Task

#: More than one call of the vision encoder, and a remainder.
IMAGES = 7
QUESTIONS = ["what is in the picture?", "what color is it?", "how many objects are there?"]
TEXTS = ["a red circle", "a picture of two blue squares on a green background"]

Answers = Callable[[Any, list[Image.Image]], list[Any]]


def captions(task: Captioner, images: list[Image.Image]) -> list[Any]:
    prompts = [None if index % 2 else "a picture of" for index in range(len(images))]
    return [found.token_ids for found in task.batch(images, prompts)]


def answers(task: QuestionAnswerer, images: list[Image.Image]) -> list[Any]:
    questions = [QUESTIONS[: 1 + index % len(QUESTIONS)] for index in range(len(images))]
    return [[answer.token_ids for answer in found] for found in task.batch(images, questions)]


def decisions(task: Matcher, images: list[Image.Image]) -> list[Any]:
    texts = [TEXTS[index % len(TEXTS)] for index in range(len(images))]
    return [round(found.probability, 3) for found in task.batch(images, texts)]


TASKS: list[tuple[type[Task], Answers]] = [
    (Captioner, captions),
    (QuestionAnswerer, answers),
    (Matcher, decisions),
]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [draw(make_scene(index)) for index in range(IMAGES)]


@pytest.fixture(params=TASKS, ids=lambda pair: pair[0].__name__)
def opened(
    request: pytest.FixtureRequest, openvino_artifacts: Path
) -> Iterator[tuple[Any, Answers]]:
    kind, ask = request.param
    with kind.from_artifacts(openvino_artifacts, target="openvino", threads=2) as task:
        yield task, ask


def test_a_batch_answers_as_its_images_alone(
    opened: tuple[Any, Answers], images: list[Image.Image]
) -> None:
    task, ask = opened
    together = ask(task, images)
    # The same place in the rotation of prompts, questions and texts, without the others.
    alone = [ask(task, images[: index + 1])[index] for index in range(IMAGES)]
    assert together == alone
    assert len({str(answer) for answer in together}) > 1


def test_threads_share_a_task(opened: tuple[Any, Answers], images: list[Image.Image]) -> None:
    task, ask = opened
    turned = [images[start:] + images[:start] for start in range(IMAGES)]
    expected = [ask(task, some) for some in turned]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda some: ask(task, some), turned))
    assert found == expected


def test_images_are_seen_a_few_at_a_time(
    openvino_artifacts: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    infer = OpenVinoSession.infer

    def counted(self: OpenVinoSession, request: Any, tensors: Any) -> None:
        if "pixel_values" in tensors:
            seen.append(int(tensors["pixel_values"].get_shape()[0]))
        infer(self, request, tensors)

    monkeypatch.setattr(OpenVinoSession, "infer", counted)
    with Captioner.from_artifacts(openvino_artifacts, target="openvino", threads=2) as captioner:
        pixels = captioner.preprocessor(images)
        whole = captioner.generate_caption(pixels)
        session = captioner.session("vision_encoder")
        assert isinstance(session, OpenVinoSession)
        monkeypatch.setattr(session, "rows_per_call", lambda _: None)
        at_once = captioner.generate_caption(pixels)
    assert seen == [2, 2, 2, 1, 7]
    np.testing.assert_array_equal(whole, at_once)
