"""The OpenVINO decoder with states: rows, beams and contexts of every arrangement, both modes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.scenes import draw, make_scene
from runtime import Captioner, QuestionAnswerer
from runtime.decoding.decoder_run import CrossStates
from runtime.decoding.openvino_run import ReadyCrossStates, StatefulRun
from runtime.preprocessing.processor import ImagePreprocessor
from runtime.sessions.session import DecoderRun, SessionOptions
from runtime.tasks.artifacts import Artifacts

#: Largest relative error of logits, per mode: configs/tolerances.yaml.
BOUNDS = {"exact": 5e-3, "fast": 5e-2}
SCENES = 5
PROMPTS = [[185], [185, 7, 42], [185, 7], [185], [185, 42, 7, 90]]


@pytest.fixture(scope="module", params=["exact", "fast"])
def pair(
    request: pytest.FixtureRequest, openvino_artifacts: Path
) -> Iterator[tuple[Artifacts, Artifacts, float]]:
    """The exported graphs, the IR in one mode, and how far they may be apart."""
    plain = Artifacts.open(openvino_artifacts, "caption", target="onnx")
    fast = Artifacts.open(openvino_artifacts, "caption", options=SessionOptions(mode=request.param))
    yield plain, fast, BOUNDS[request.param]
    plain.close()
    fast.close()


def runs(plain: Artifacts, compiled: Artifacts) -> tuple[DecoderRun, DecoderRun]:
    images = [draw(make_scene(index)) for index in range(SCENES)]
    pixels = ImagePreprocessor(plain.manifest.image)(images)
    found = []
    for artifacts in (plain, compiled):
        cross = Captioner(artifacts).encode_image(pixels)
        decoder = artifacts.session("text_decoder")
        found.append(decoder.start_run(artifacts.manifest.dimensions, cross))
    assert isinstance(found[1], StatefulRun)
    return found[0], found[1]


def close(expected: np.ndarray, found: np.ndarray, bound: float) -> bool:
    return bool(np.abs(found - expected).max() <= bound * np.abs(expected).max())


#: Each step's parents: beams spread, swapped, ended one by one, whole contexts gone, all but one.
WALKS = {
    "rows": [range(5), range(5), range(5)],
    "beams": [np.repeat(range(5), 3), np.arange(15), np.repeat(range(0, 15, 3), 3)],
    "swapped beams": [np.repeat(range(5), 2), [1, 0, 3, 2, 5, 4, 7, 6, 9, 8]],
    "rows that end": [range(5), [0, 1, 3, 4], [0, 2, 3], [1, 2], [1], [0]],
    "contexts that end": [np.repeat(range(5), 2), [0, 1, 6, 7, 8, 9], [2, 3], [1, 0]],
    "uneven": [[0, 0, 0, 1, 3, 3], [5, 5, 0, 2, 3], [1, 0, 0, 3]],
}


@pytest.mark.parametrize("walk", list(WALKS))
def test_logits_are_the_exported_graphs(
    pair: tuple[Artifacts, Artifacts, float], walk: str
) -> None:
    plain, compiled, bound = pair
    reference, stateful = runs(plain, compiled)
    contexts = range(SCENES)
    assert close(reference.start(PROMPTS, contexts), stateful.start(PROMPTS, contexts), bound)
    generator = np.random.default_rng(0)
    for number, parents in enumerate(WALKS[walk]):
        rows = np.array(parents, dtype=np.int64)
        tokens = generator.integers(1, 150, len(rows))
        expected, found = reference.step(rows, tokens), stateful.step(rows, tokens)
        assert close(expected, found, bound), number


def test_a_request_serves_few_rows_then_many(pair: tuple[Artifacts, Artifacts, float]) -> None:
    # An 8-bit cache, the plugin's default, turned into NaN here.
    plain, compiled, bound = pair
    for rows in (1, 5, 2, 5):
        reference, stateful = runs(plain, compiled)
        prompts, contexts = [[185]] * rows, range(rows)
        reference.start(prompts, contexts)
        stateful.start(prompts, contexts)
        for token in (7, 42, 90):
            index, tokens = np.arange(rows), np.full(rows, token)
            assert close(reference.step(index, tokens), stateful.step(index, tokens), bound)
        stateful.close()


def test_the_contract_call_works_on_the_same_artifact(
    pair: tuple[Artifacts, Artifacts, float],
) -> None:
    plain, compiled, bound = pair
    dimensions = plain.manifest.dimensions
    generator = np.random.default_rng(1)

    def rows(count: int, tokens: int) -> np.ndarray:
        shape = (count, tokens, dimensions.heads, dimensions.head_size)
        return generator.standard_normal(shape).astype(np.float32)

    for batch, past, text in ((1, 0, 4), (2, 6, 1), (2, 3, 2)):
        feeds = {
            "input_ids": generator.integers(1, 150, (batch, text)),
            "position_ids": np.tile(np.arange(past, past + text), (batch, 1)),
            "self_attention_mask": np.zeros((batch, 1, text, past + text), dtype=np.float32),
        }
        for layer in range(dimensions.layers):
            for part in ("key", "value"):
                feeds[f"past.{layer}.{part}"] = rows(batch, past)
                feeds[f"cross.{layer}.{part}"] = rows(batch, 9)
        expected = plain.session("text_decoder").run(feeds)
        found = compiled.session("text_decoder").run(feeds)
        assert set(found) == set(expected)
        for name, array in expected.items():
            assert found[name].shape == array.shape
            assert close(array, found[name], bound), name


def test_two_generations_at_once_do_not_mix(pair: tuple[Artifacts, Artifacts, float]) -> None:
    _, compiled, _ = pair
    images = [draw(make_scene(index)) for index in range(2)]
    captioner = Captioner(compiled)
    alone = [captioner(image).token_ids for image in images]
    pixels = captioner.preprocessor(images)
    started = []
    for row in range(2):
        cross = captioner.encode_image(pixels[row : row + 1])
        run = compiled.session("text_decoder").start_run(compiled.manifest.dimensions, cross)
        start = [captioner.manifest.text.start_token_id]
        started.append((run, [start[0], int(run.start([start], [0]).argmax())]))
    for _ in range(3):
        for run, tokens in started:
            logits = run.step(np.zeros(1, dtype=np.int64), np.array(tokens[-1:]))
            tokens.append(int(logits.argmax()))
    assert [tuple(tokens) for _, tokens in started] == [tokens[:5] for tokens in alone]


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_to_uneven_questions(openvino_artifacts: Path, mode: str, beams: int) -> None:
    images = [draw(make_scene(index)) for index in range(4)]
    questions = [["how many shapes are there?", "what color is the circle?"]] * 3 + [["how many?"]]
    found = []
    for target in ("onnx", "openvino"):
        with QuestionAnswerer.from_artifacts(
            openvino_artifacts, target=target, mode=mode
        ) as answerer:
            answers = answerer.batch(images, questions, num_beams=beams)
            found.append([answer.token_ids for row in answers for answer in row])
    assert found[0] == found[1]


def test_a_batch_leaves_no_tensors_behind(openvino_artifacts: Path) -> None:
    with Captioner.from_artifacts(openvino_artifacts, threads=1) as captioner:
        decoder = captioner.session("text_decoder")
        net = decoder.net(None)
        image = draw(make_scene(0))
        for images in (1, 3, 1):
            captioner([image] * images)
            request = decoder.borrow(net)
            held = request.get_tensor(net.inputs[-1].artifact_name).get_shape()
            # Of a batch it is a new one, which holds nothing.
            assert held[0] == (1 if images == 1 else 0)
            if images == 1:
                decoder.give_back(net, request)


def test_question_states_are_projected_without_a_copy(openvino_artifacts: Path) -> None:
    artifacts = Artifacts.open(openvino_artifacts, "vqa")
    size = artifacts.manifest.dimensions.hidden_size
    states = np.zeros((2, 5, size), dtype=np.float32)
    feeds = {"encoder_hidden_states": states}
    cross = artifacts.session("cross_key_values").cross_states(feeds, np.ones((2, 5)))
    assert isinstance(cross, ReadyCrossStates)
    assert not isinstance(cross, CrossStates)
    artifacts.close()
