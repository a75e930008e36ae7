"""Answers, matches, threads and drop-in methods against HuggingFace on the reference models."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.scenes import matching_pairs, questions
from runtime import BlipModel, Captioner, Matcher, QuestionAnswerer
from runtime.decoding.batching import StoppedError, StopSignal, Timings
from runtime.errors import InputError
from tests.runtime_support import (
    IMAGES,
    SCENES,
    THREADS,
    fixed_view,
    reference_model,
    reference_pixels,
    reference_tokenizer,
    trimmed,
)

QUESTIONS = [[item.question for item in questions(scene)][:5] for scene in SCENES]
TEXTS = [matching_pairs(scene)[index % 2].text for index, scene in enumerate(SCENES)]


@pytest.fixture(scope="module")
def folders(exported_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    fixed = fixed_view(exported_artifacts, tmp_path_factory.mktemp("fixed"))
    return {"growing": exported_artifacts, "fixed": fixed}


@pytest.fixture(params=["growing", "fixed"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def reference_answer(artifacts: Path, image: int, question: str, **generation) -> list[list[int]]:
    encoded = reference_tokenizer(artifacts, "vqa")(question, return_tensors="pt")
    pixels = torch.from_numpy(reference_pixels(artifacts, "vqa")[image : image + 1])
    return (
        reference_model(artifacts, "vqa")
        .generate(
            pixel_values=pixels,
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            **generation,
        )
        .tolist()
    )


@pytest.mark.filterwarnings("ignore:Using the model-agnostic")
@pytest.mark.parametrize(
    "generation",
    [{}, {"num_beams": 3, "num_return_sequences": 2}, {"max_new_tokens": 6, "min_new_tokens": 5}],
    ids=["greedy", "beams", "long"],
)
def test_answers_equal_unpadded_huggingface(
    exported_artifacts: Path, folder: Path, generation: dict[str, int]
):
    """Questions of several lengths in one batch: the decoder must not see their padding."""
    lengths = {len(question.split()) for asked in QUESTIONS for question in asked}
    assert len(lengths) >= 3
    with QuestionAnswerer.from_artifacts(folder, target="onnx", threads=THREADS) as answerer:
        text = answerer.manifest.text
        found = answerer.batch(IMAGES, QUESTIONS, **generation)
    for image, asked in enumerate(QUESTIONS):
        for question, answer in zip(asked, found[image], strict=True):
            expected = reference_answer(exported_artifacts, image, question, **generation)
            for row, sequence in zip(expected, [answer, *answer.alternatives], strict=True):
                wanted = trimmed(row, text.end_token_id, text.pad_token_id)
                assert list(sequence.token_ids) == wanted, question


def test_an_image_is_encoded_once(exported_artifacts: Path):
    timings = Timings()
    with QuestionAnswerer.from_artifacts(exported_artifacts, target="onnx") as answerer:
        found = answerer.batch(IMAGES[:2], QUESTIONS[:2], timings=timings)
        assert timings.rows["vision"] == 2
        assert timings.rows["text_encoder"] == 10
        embeds = answerer.encode(IMAGES[:1])
        assert answerer.answer(embeds, QUESTIONS[0]) == found[0]
        assert answerer.ask(IMAGES[0], QUESTIONS[0]) == found[0]
        assert answerer(IMAGES[0], QUESTIONS[0][0]) == found[0][0]


def test_questions_that_cannot_be_used_are_refused(folders: dict[str, Path]):
    with QuestionAnswerer.from_artifacts(folders["fixed"], target="onnx") as answerer:
        with pytest.raises(InputError, match="takes 32"):
            answerer(IMAGES[0], "how many " * 40)
        with pytest.raises(InputError, match="one list of questions"):
            answerer.batch(IMAGES[:1], ["how many?"])
        with pytest.raises(InputError, match="one list of questions"):
            answerer.batch(IMAGES[:2], [["how many?"]])
    with (
        QuestionAnswerer.from_artifacts(folders["growing"], target="onnx") as answerer,
        pytest.raises(InputError, match="shorten"),
    ):
        answerer(IMAGES[0], "how many " * 400)


def test_matches_equal_huggingface(exported_artifacts: Path, folder: Path):
    model = reference_model(exported_artifacts, "itm")
    tokenizer = reference_tokenizer(exported_artifacts, "itm")
    with Matcher.from_artifacts(folder, target="onnx", threads=THREADS) as matcher:
        found = matcher.batch(IMAGES, TEXTS)
    for image, (text, match) in enumerate(zip(TEXTS, found, strict=True)):
        encoded = tokenizer(text, return_tensors="pt")
        pixels = torch.from_numpy(reference_pixels(exported_artifacts, "itm")[image : image + 1])
        inputs = {
            "pixel_values": pixels,
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
        }
        with torch.no_grad():
            logits = model(**inputs).itm_score
            cosine = model(**inputs, use_itm_head=False).itm_score
        assert match.probability == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-4)
        assert match.itm_logits == pytest.approx(logits[0].tolist(), abs=1e-3)
        assert match.cosine == pytest.approx(cosine.item(), abs=1e-4)


def test_ranking_scores_the_best_pairs_only(exported_artifacts: Path):
    timings = Timings()
    with Matcher.from_artifacts(exported_artifacts, target="onnx", threads=THREADS) as matcher:
        every = matcher.rank(IMAGES, TEXTS, top_k=len(TEXTS))
        few = matcher.rank(IMAGES, TEXTS, top_k=2, timings=timings)
        none = matcher.rank(IMAGES[:2], TEXTS, top_k=0)
        pairs = matcher.batch(IMAGES, TEXTS)
    scored = ~np.isnan(few.probability)
    assert (scored.sum(axis=1) >= 2).all()
    assert (scored.sum(axis=0) >= 2).all()
    assert scored.sum() == timings.rows["text_encoder"] < every.probability.size
    assert np.allclose(few.probability[scored], every.probability[scored], atol=1e-5)
    assert np.isnan(none.probability).all()
    assert none.texts_for(0) == np.argsort(-none.cosine[0]).tolist()
    for row, pair in enumerate(pairs):
        assert every.probability[row, row] == pytest.approx(pair.probability, abs=1e-5)
        best = every.texts_for(row)[0]
        assert every.probability[row, best] == every.probability[row].max()
        column = every.images_for(row)[0]
        assert every.probability[column, row] == every.probability[:, row].max()


def test_nothing_to_rank_is_refused(exported_artifacts: Path):
    with Matcher.from_artifacts(exported_artifacts, target="onnx") as matcher:
        for images, texts in ((IMAGES[:1], []), ([], TEXTS[:1])):
            with pytest.raises(InputError, match="at least one"):
                matcher.rank(images, texts)
        with pytest.raises(InputError, match="top_k"):
            matcher.rank(IMAGES[:1], TEXTS[:1], top_k=-1)
        with pytest.raises(InputError, match="one per image"):
            matcher.batch(IMAGES[:2], TEXTS[:1])


@pytest.mark.filterwarnings("ignore:Using the model-agnostic")
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_drop_in_methods(exported_artifacts: Path, kind: str):
    """Arrays in, arrays out; tensors in, tensors out; the values are HuggingFace's."""
    model = BlipModel.from_artifacts(exported_artifacts, target="onnx", threads=THREADS)
    tokenizer = reference_tokenizer(exported_artifacts, "vqa")
    pixels = torch.from_numpy(reference_pixels(exported_artifacts, "caption")[:3])
    question = tokenizer(["how many shapes are there?"] * 3, return_tensors="pt")
    ids, mask = question["input_ids"], question["attention_mask"]
    as_kind = (lambda tensor: tensor) if kind == "torch" else (lambda tensor: tensor.numpy())
    captions = model.generate_caption(as_kind(pixels), num_beams=2)
    answers = model.generate_answer(as_kind(pixels), as_kind(ids), as_kind(mask), max_length=6)
    assert type(captions) is type(answers) is (torch.Tensor if kind == "torch" else np.ndarray)
    expected = reference_model(exported_artifacts, "caption").generate(pixels, num_beams=2)
    assert captions.tolist() == expected.tolist()
    expected = reference_model(exported_artifacts, "vqa").generate(
        input_ids=ids, pixel_values=pixels, attention_mask=mask, max_length=6
    )
    assert answers.tolist() == expected.tolist()
    with pytest.raises(InputError, match="rows for 3 images"):
        model.generate_answer(as_kind(pixels), as_kind(ids[:2]), as_kind(mask[:2]))


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_eight_threads_give_the_answers_of_one(openvino_artifacts: Path, target: str):
    with Captioner.from_artifacts(openvino_artifacts, target=target, threads=THREADS) as captioner:
        expected = [captioner(image).token_ids for image in IMAGES]
        found: dict[tuple[int, int], tuple[int, ...]] = {}
        problems: list[BaseException] = []

        def work(thread: int) -> None:
            try:
                for step in range(len(IMAGES)):
                    index = (step + thread) % len(IMAGES)
                    found[thread, index] = captioner(IMAGES[index]).token_ids
            except BaseException as problem:
                problems.append(problem)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems
    assert len(found) == 8 * len(IMAGES)
    assert all(tokens == expected[index] for (_, index), tokens in found.items())


def test_openvino_modes_and_threads(openvino_artifacts: Path, tmp_path: Path):
    arguments = {"target": "openvino", "threads": THREADS}
    with Captioner.from_artifacts(openvino_artifacts, mode="exact", **arguments) as captioner:
        exact = captioner.batch(IMAGES, num_beams=2)
    cached = {"mode": "fast", "cache_folder": tmp_path / "cache", "performance_hint": "throughput"}
    with Captioner.from_artifacts(openvino_artifacts, **cached, **arguments) as captioner:
        fast = captioner.batch(IMAGES, num_beams=2)
    assert list((tmp_path / "cache").iterdir())
    assert len(exact) == len(fast) == len(IMAGES)


def test_empty_input_gives_an_empty_answer(exported_artifacts: Path):
    with Captioner.from_artifacts(exported_artifacts, target="onnx") as captioner:
        assert captioner.batch([]) == []
        with pytest.raises(InputError, match="texts: 1 for 2 images"):
            captioner.batch(IMAGES[:2], ["a"])


def test_one_image_gives_one_result_and_a_list_a_list(exported_artifacts: Path):
    options = {"target": "onnx", "threads": THREADS}
    with Captioner.from_artifacts(exported_artifacts, **options) as captioner:
        alone = [captioner(image) for image in IMAGES[:2]]
        assert captioner(IMAGES[:2]) == captioner(tuple(IMAGES[:2])) == alone
        assert captioner(IMAGES[:1]) == alone[:1]
        prompts = [None, "a picture of"]
        assert captioner(IMAGES[0], prompts) == captioner([IMAGES[0]] * 2, prompts)
    with QuestionAnswerer.from_artifacts(exported_artifacts, **options) as answerer:
        asked = QUESTIONS[0][:2]
        alone = [answerer(IMAGES[0], question) for question in asked]
        assert answerer(IMAGES[0], asked) == answerer([IMAGES[0]] * 2, asked) == alone
        assert answerer(IMAGES[:2], asked[0])[0] == alone[0]
        with pytest.raises(InputError, match="pass a string"):
            answerer(IMAGES[0])
    with Matcher.from_artifacts(exported_artifacts, **options) as matcher:
        alone = [matcher(image, TEXTS[0]) for image in IMAGES[:2]]
        together = matcher(IMAGES[:2], TEXTS[0])
        for one, other in zip(alone, together, strict=True):
            assert one.probability == pytest.approx(other.probability, abs=1e-5)
        with pytest.raises(InputError, match="'num_beams': matching takes none"):
            matcher(IMAGES[0], TEXTS[0], num_beams=2)


def test_timings_of_a_stream_serve_later_calls(exported_artifacts: Path):
    timings = Timings()
    with Captioner.from_artifacts(exported_artifacts, target="onnx", threads=THREADS) as captioner:
        streamed = [found for _, found in captioner.stream(IMAGES[:2], timings=timings)]
        assert timings.rows["vision"] == 2
        assert captioner.batch(IMAGES[:2], timings=timings) == streamed
        assert timings.rows["vision"] == 4
        # Left early, as well.
        next(captioner.stream(IMAGES, timings=timings))
        assert captioner(IMAGES[0], timings=timings) == streamed[0]


def test_a_call_ends_at_the_stage_after_its_signal(exported_artifacts: Path):
    class Stopping(Timings):
        def __init__(self, stop: StopSignal, after: str) -> None:
            super().__init__()
            self._stop, self._after = stop, after

        def measure(self, stage: str, rows: int = 1):
            if stage == self._after:
                self._stop.set()
            return super().measure(stage, rows)

    options = {"target": "onnx", "threads": THREADS}
    with (
        Captioner.from_artifacts(exported_artifacts, **options) as captioner,
        QuestionAnswerer.from_artifacts(exported_artifacts, **options) as answerer,
        Matcher.from_artifacts(exported_artifacts, **options) as matcher,
    ):
        for task, text, stages in (
            (captioner, None, ["preprocess", "vision", "cross_key_values", "first_pass", "step"]),
            (answerer, "how many?", ["vision", "text_encoder", "cross_key_values", "first_pass"]),
            (matcher, "two rings", ["vision", "vision_projection", "text_encoder_unimodal"]),
        ):
            for after in stages:
                stop = StopSignal()
                timings = Stopping(stop, after)
                with pytest.raises(StoppedError):
                    task(IMAGES[0], text, timings=timings, stop=stop)
                assert list(timings.calls)[-1] == after
                assert timings.calls[after] == 1
