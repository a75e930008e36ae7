"""Confidence, scores of given texts, choice among answers and forbidden words, by HuggingFace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime import Captioner, InputError, QuestionAnswerer
from runtime.generation.generate import Limits, start_search
from runtime.generation.settings import GenerationSettings
from tests.runtime_support import (
    IMAGES,
    THREADS,
    fixed_view,
    reference_caption,
    reference_model,
    reference_pixels,
    reference_tokenizer,
)

CAPTIONS = ["a white ring left of two blue rings", "a ring", "three red stars above a circle"]
PROMPT = "a picture of"
QUESTION = "what color is the shape?"
ANSWERS = [
    *("red", "blue", "yes", "no", "two", "three", "a ring", "a red ring", "a red ring and a star"),
    *("circle", "two blue rings", "two blue circles", "white", "a", "left"),
]
SCORES = {"abs": 1e-5, "rel": 1e-5}


@pytest.fixture(scope="module", params=["growing", "fixed"])
def folder(
    request: pytest.FixtureRequest,
    exported_artifacts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    if request.param == "growing":
        return exported_artifacts
    return fixed_view(exported_artifacts, tmp_path_factory.mktemp("fixed"))


@pytest.fixture(scope="module")
def captioner(folder: Path) -> Iterator[Captioner]:
    with Captioner.from_artifacts(folder, target="onnx", threads=THREADS) as task:
        yield task


@pytest.fixture(scope="module")
def answerer(folder: Path) -> Iterator[QuestionAnswerer]:
    with QuestionAnswerer.from_artifacts(folder, target="onnx", threads=THREADS) as task:
        yield task


def expected_log_probs(artifacts: Path, image: int, tokens: tuple[int, ...], prompt: int) -> Any:
    """Log-probability of every token after the prompt, by HuggingFace's decoder in one pass."""
    model = reference_model(artifacts, "caption")
    pixels = torch.from_numpy(reference_pixels(artifacts, "caption")[image : image + 1])
    ids = torch.tensor([tokens])
    with torch.no_grad():
        states = model.vision_model(pixels).last_hidden_state
        logits = model.text_decoder(ids, encoder_hidden_states=states).logits[0]
    every = torch.log_softmax(logits, dim=-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
    return every[prompt - 1 :].numpy()


def test_scores_of_given_captions(exported_artifacts: Path, captioner: Captioner) -> None:
    """Several texts of one image share its rows; some come with a prompt."""
    tokenizer = reference_tokenizer(exported_artifacts, "caption")
    start, end = captioner.manifest.text.start_token_id, captioner.manifest.text.end_token_id
    images = [0, 0, 0, 1, 1, 2]
    prompts = [None, None, None, PROMPT, None, PROMPT]
    texts = [*CAPTIONS, CAPTIONS[0], CAPTIONS[1], CAPTIONS[2]]
    found = captioner.score([IMAGES[image] for image in images], texts, prompts)
    for image, prompt, text, one in zip(images, prompts, texts, found, strict=True):
        before = [start, *tokenizer(prompt or "").input_ids[1:-1]]
        ids = (*before, *tokenizer(text).input_ids[1:-1], end)
        expected = expected_log_probs(exported_artifacts, image, ids, len(before))
        assert one.token_ids == ids
        assert (one.text, one.finished) == (text, "given")
        assert one.log_probs == pytest.approx(expected, **SCORES)
        assert one.log_probability == pytest.approx(expected.sum(), **SCORES)
        assert one.confidence == pytest.approx(math.exp(expected.mean()), **SCORES)
    alone = captioner.score(IMAGES[0], CAPTIONS[0])
    assert alone.log_probs == pytest.approx(found[0].log_probs, **SCORES)
    assert captioner.score(IMAGES[0], CAPTIONS)[2].text == CAPTIONS[2]


@pytest.mark.parametrize(
    "generation",
    [
        {},
        {"repetition_penalty": 1.7, "min_new_tokens": 12},
        {"num_beams": 3, "num_return_sequences": 3},
        {"do_sample": True, "seed": 3, "temperature": 3.0},
    ],
    ids=["greedy", "penalty", "beams", "sampling"],
)
def test_every_search_says_how_sure_it_is(
    exported_artifacts: Path, captioner: Captioner, generation: dict[str, Any]
) -> None:
    """The model's own probabilities, whatever the rules of the search did to them."""
    for row, best in enumerate(captioner.batch(IMAGES[:2], [None, PROMPT], **generation)):
        prompt = len(captioner.tokenizer.prompt([None, PROMPT][row]))
        for one in [best, *best.alternatives]:
            expected = expected_log_probs(exported_artifacts, row, one.token_ids, prompt)
            assert one.log_probs == pytest.approx(expected, **SCORES)
            assert one.record()["confidence"] == one.confidence
            assert 0 < one.confidence <= 1


@contextmanager
def smoothed(decoder: Any) -> Iterator[None]:
    """HuggingFace's decoder with the loss of BLIP's own code."""
    before, decoder.label_smoothing = decoder.label_smoothing, 0.1
    try:
        yield
    finally:
        decoder.label_smoothing = before


def expected_ranks(artifacts: Path, image: int, question: str, k: int) -> list[tuple[str, float]]:
    """``rank_answer`` of BLIP's own code on HuggingFace's model: best answers first."""
    model, tokenizer = reference_model(artifacts, "vqa"), reference_tokenizer(artifacts, "vqa")
    asked = tokenizer(question, return_tensors="pt")
    pixels = torch.from_numpy(reference_pixels(artifacts, "vqa")[image : image + 1])
    padded = tokenizer(ANSWERS, padding="longest", return_tensors="pt")
    ids, mask = padded.input_ids.clone(), padded.attention_mask
    ids[:, 0] = model.decoder_start_token_id
    with torch.no_grad(), smoothed(model.text_decoder):
        states = model.text_encoder(
            asked.input_ids,
            attention_mask=asked.attention_mask,
            encoder_hidden_states=model.vision_model(pixels).last_hidden_state,
        ).last_hidden_state
        first = model.text_decoder(ids[:1, :1], encoder_hidden_states=states).logits[:, 0]
        likely = torch.softmax(first, dim=1)[0, ids[:, 1]].argsort(descending=True, stable=True)[:k]
        loss = model.text_decoder(
            ids[likely],
            attention_mask=mask[likely],
            encoder_hidden_states=states.repeat(k, 1, 1),
            labels=ids[likely].masked_fill(mask[likely] == 0, -100),
            reduction="none",
        ).loss
    found = [(ANSWERS[index], -float(one)) for index, one in zip(likely, loss, strict=True)]
    return sorted(found, key=lambda pair: -pair[1])


@pytest.mark.parametrize("candidates", [4, None], ids=["the likely", "all"])
def test_choosing_among_answers_is_the_rank_evaluation_of_blip(
    exported_artifacts: Path, answerer: QuestionAnswerer, candidates: int | None
) -> None:
    k = candidates or len(ANSWERS)
    questions = [QUESTION, "how many shapes are there?"]
    found = answerer.batch(
        IMAGES[:2],
        [questions, questions[:1]],
        answers=ANSWERS,
        answer_candidates=candidates,
        num_return_sequences=k,
    )
    for image, asked in enumerate([questions, questions[:1]]):
        for question, best in zip(asked, found[image], strict=True):
            expected = expected_ranks(exported_artifacts, image, question, k)
            several = [best, *best.alternatives]
            assert [one.text for one in several] == [text for text, _ in expected]
            scores = [score for _, score in expected]
            assert [one.score for one in several] == pytest.approx(scores, **SCORES)
    one = answerer(IMAGES[0], QUESTION, answers=ANSWERS, answer_candidates=candidates)
    assert one.text == found[0][0].text
    assert one.alternatives == ()


def test_scores_of_given_answers(answerer: QuestionAnswerer) -> None:
    """What was generated has, given, the confidence that it had."""
    questions = [QUESTION, "how many shapes are there?", QUESTION]
    generated = answerer(IMAGES[:3], questions)
    scored = answerer.score(IMAGES[:3], questions, [one.text for one in generated])
    for made, given in zip(generated, scored, strict=True):
        assert given.token_ids == made.token_ids
        assert given.log_probs == pytest.approx(made.log_probs, **SCORES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"answers": []}, "at least one text"),
        ({"answers": "red"}, "pass a list"),
        ({"answers": ["red", " "]}, "empty"),
        ({"answers": ["red " * 600]}, "this artifact takes"),
        ({"answers": ["red"], "num_beams": 2}, "num_beams: does nothing beside answers"),
        ({"answers": ["red"], "answer_candidates": 0}, "answer_candidates 0"),
        ({"answer_candidates": 3}, "does nothing without answers"),
        ({"bad_words": [""]}, "bad_words: one is empty"),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"suppress_tokens": [-1]}, "suppress_tokens"),
        ({"suppress_tokens": [10**6]}, "is outside"),
    ],
)
def test_what_cannot_be_used_is_refused(
    answerer: QuestionAnswerer, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        answerer(IMAGES[0], QUESTION, **arguments)


def test_lists_of_different_lengths_are_refused(captioner: Captioner) -> None:
    with pytest.raises(InputError, match="lists of 2 and 3"):
        captioner.score(IMAGES[:2], CAPTIONS)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3, "num_return_sequences": 3}])
def test_forbidden_words_equal_huggingface(
    exported_artifacts: Path, captioner: Captioner, search: dict[str, int]
) -> None:
    """Words, a phrase, a word of the prompt, and single tokens; the end token stays allowed."""
    tokenizer = reference_tokenizer(exported_artifacts, "caption")
    pixels = reference_pixels(exported_artifacts, "caption")[:3]
    free = captioner.batch(IMAGES[:3], **search)
    words = [[tokenizer.convert_tokens_to_ids("ring")], [captioner.manifest.text.end_token_id]]
    words += [tokenizer("blue rings").input_ids[1:-1], tokenizer("of a").input_ids[1:-1]]
    # What one caption is made of.
    suppressed = [int(token) for token in free[1].token_ids[2:4]]
    given = {"bad_words_ids": words, "suppress_tokens": suppressed, **search}
    expected = reference_caption(exported_artifacts, pixels, None, **given)
    assert captioner.generate_caption(pixels, **given).tolist() == expected
    found = captioner.batch(IMAGES[:3], **given)
    assert [one.token_ids for one in found] != [one.token_ids for one in free]
    plain = captioner.batch(IMAGES[:3], bad_words=["blue rings", "of a"], **search)
    ids = captioner.batch(IMAGES[:3], bad_words_ids=words[2:], **search)
    assert [one.token_ids for one in plain] == [one.token_ids for one in ids]


def test_a_net_that_chooses_tokens_is_asked_for_logits_where_confidence_is_wanted() -> None:
    limits = Limits(longest=4, shortest=0, end_token_id=0)
    quick = start_search([1], GenerationSettings(), limits, 0)
    assert quick.takes_tokens
    quick.advance(np.array([0]))
    assert quick.results()[0].log_probs == ()
    asked = start_search([1], GenerationSettings(output_scores=True), limits, 0)
    assert not asked.takes_tokens
    asked.advance(np.array([[2.0, 0.0]], dtype=np.float32))
    assert asked.results()[0].log_probs == pytest.approx([-math.log(1 + math.exp(-2))])
