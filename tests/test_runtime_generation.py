"""Generation gives the tokens of HuggingFace ``generate`` in every deterministic mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime import Captioner
from runtime.errors import InputError
from tests.runtime_support import (
    IMAGES,
    THREADS,
    fixed_view,
    reference_caption,
    reference_pixels,
    reference_tokenizer,
    trimmed,
)

PROMPT = "a picture of"
MODES = {
    "greedy": {},
    "greedy_long": {"max_new_tokens": 24, "min_new_tokens": 18},
    "greedy_max_length": {"max_length": 7},
    "greedy_min_length": {"min_length": 16, "max_length": 20},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "reward_repetition": {"repetition_penalty": 0.7, "max_new_tokens": 12},
    "no_repeat_1": {"no_repeat_ngram_size": 1, "max_new_tokens": 12},
    "no_repeat_2": {"no_repeat_ngram_size": 2, "min_new_tokens": 14},
    "beams": {"num_beams": 3},
    "beams_n_best": {"num_beams": 4, "num_return_sequences": 4},
    "beams_long": {"num_beams": 3, "length_penalty": 2.0, "num_return_sequences": 2},
    "beams_short": {"num_beams": 3, "length_penalty": -1.0, "num_return_sequences": 3},
    "beams_early": {"num_beams": 4, "early_stopping": True, "num_return_sequences": 2},
    "beams_never": {"num_beams": 3, "early_stopping": "never", "length_penalty": 1.5},
    "beams_penalties": {
        "num_beams": 3,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 10,
        "max_new_tokens": 15,
    },
    "beams_cut": {"num_beams": 3, "max_new_tokens": 4, "num_return_sequences": 3},
}
UNEVEN = [None, "a", PROMPT, "a large", "a picture", "two", "the a large red", PROMPT]


@pytest.fixture(scope="module")
def growing(exported_artifacts: Path):
    with Captioner.from_artifacts(exported_artifacts, target="onnx", threads=THREADS) as captioner:
        yield captioner


@pytest.fixture(scope="module")
def fixed(exported_artifacts: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = fixed_view(exported_artifacts, tmp_path_factory.mktemp("fixed"))
    with Captioner.from_artifacts(folder, target="onnx", threads=THREADS) as captioner:
        yield captioner


@pytest.fixture(params=["growing", "fixed"])
def captioner(request: pytest.FixtureRequest) -> Captioner:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("prompt", [None, PROMPT], ids=["free", "prompted"])
@pytest.mark.parametrize("mode", MODES)
def test_equal_to_huggingface(exported_artifacts: Path, captioner, mode: str, prompt: str | None):
    """16 modes x 2 prompts x 8 images = 256 cases, n-best and filling included, on both caches."""
    pixels = reference_pixels(exported_artifacts, "caption")
    expected = reference_caption(exported_artifacts, pixels, prompt, **MODES[mode])
    arguments = {}
    if prompt is not None:
        encoded = reference_tokenizer(exported_artifacts, "caption")(
            [prompt] * len(pixels), return_tensors="np"
        )
        arguments = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    found = captioner.generate_caption(pixels, **arguments, **MODES[mode])
    assert found.tolist() == expected


@pytest.mark.parametrize("mode", ["greedy", "repetition_penalty", "no_repeat_2", "beams_early"])
def test_uneven_prompts_in_one_batch(exported_artifacts: Path, captioner, mode: str):
    """Every row equals HuggingFace on that row alone, without padding."""
    text = captioner.manifest.text
    pixels = reference_pixels(exported_artifacts, "caption")
    found = captioner.batch(IMAGES, UNEVEN, **MODES[mode])
    for row, prompt in enumerate(UNEVEN):
        alone = reference_caption(exported_artifacts, pixels[row : row + 1], prompt, **MODES[mode])
        for index, sequence in enumerate([found[row], *found[row].alternatives]):
            expected = trimmed(alone[index], text.end_token_id, text.pad_token_id)
            assert list(sequence.token_ids) == expected, (row, prompt)


def test_padded_prompts_equal_unpadded_ones(exported_artifacts: Path, captioner):
    tokenizer = reference_tokenizer(exported_artifacts, "caption")
    pixels = reference_pixels(exported_artifacts, "caption")[:4]
    prompts = ["a", PROMPT, "a large", "two"]
    for side in ("right", "left"):
        encoded = tokenizer(prompts, padding=True, padding_side=side, return_tensors="np")
        found = captioner.generate_caption(pixels, encoded["input_ids"], encoded["attention_mask"])
        text = captioner.manifest.text
        for row, prompt in enumerate(prompts):
            alone = reference_caption(exported_artifacts, pixels[row : row + 1], prompt)[0]
            assert trimmed(found[row], text.end_token_id, text.pad_token_id) == alone


def test_prompts_longer_than_the_first_pass(exported_artifacts: Path, captioner):
    """A chip's first pass takes 8 tokens; longer prompts go in several calls."""
    pixels = reference_pixels(exported_artifacts, "caption")[:2]
    words = "a large red circle above a small green circle left of two blue rings"
    for count in (7, 8, 9, 14):
        prompt = " ".join(words.split()[:count])
        expected = reference_caption(exported_artifacts, pixels, prompt, max_new_tokens=6)
        found = captioner.batch(IMAGES[:2], prompt, max_new_tokens=6)
        text = captioner.manifest.text
        for row in range(2):
            wanted = trimmed(expected[row], text.end_token_id, text.pad_token_id)
            assert list(found[row].token_ids) == wanted


def test_the_last_slot_of_the_cache_is_used(exported_artifacts: Path, fixed):
    """31 slots hold 31 fed tokens; a 32nd can still be fed, and gives token 33."""
    slots = fixed.manifest.shapes.past_tokens
    longest = slots + 2
    pixels = reference_pixels(exported_artifacts, "caption")[:2]
    arguments = {"min_length": longest, "max_length": longest}
    expected = reference_caption(exported_artifacts, pixels, None, **arguments)
    found = fixed.generate_caption(pixels, **arguments)
    assert found.tolist() == expected
    assert found.shape[1] == longest
    beyond = fixed.generate_caption(pixels, min_length=longest + 9, max_length=longest + 9)
    assert beyond.tolist() == expected, "stops cleanly when the cache is full"


def test_greedy_stops_at_the_checkpoints_last_position(growing):
    most = growing.manifest.text.maximum_positions
    found = growing.generate_caption(
        growing.preprocessor(IMAGES[:2]), min_length=500, max_length=500
    )
    assert found.shape[1] == most + 1


def test_a_row_does_not_depend_on_its_batch(captioner):
    prompts = UNEVEN[: len(IMAGES)]
    together = captioner.batch(IMAGES, prompts, num_beams=2)
    alone = [
        captioner.batch([image], [text], num_beams=2)[0]
        for image, text in zip(IMAGES, prompts, strict=True)
    ]
    assert [item.token_ids for item in together] == [item.token_ids for item in alone]


def test_sampling_is_seeded_and_varies(captioner):
    arguments = {"do_sample": True, "temperature": 1.6, "num_return_sequences": 3}
    first = captioner.batch(IMAGES[:3], seed=5, **arguments)
    again = captioner.batch(IMAGES[:3], seed=5, **arguments)
    other = captioner.batch(IMAGES[:3], seed=6, **arguments)
    assert first == again
    assert first != other
    assert len(first[0].alternatives) == 2
    assert captioner.batch(IMAGES[:2], do_sample=True, num_beams=3, seed=1)


@pytest.mark.parametrize("arguments", [{"top_k": 1}, {"top_p": 0.0}, {"temperature": 1e-4}])
def test_sampling_that_leaves_one_token_is_greedy(captioner, arguments: dict[str, float]):
    greedy = captioner.batch(IMAGES[:4])
    sampled = captioner.batch(IMAGES[:4], do_sample=True, seed=0, **arguments)
    assert [item.token_ids for item in sampled] == [item.token_ids for item in greedy]


def test_streamed_tokens_are_the_answer(captioner):
    streamed: dict[int, list[int]] = {}
    found = captioner.batch(
        IMAGES[:3], PROMPT, on_token=lambda row, token: streamed.setdefault(row, []).append(token)
    )
    for row, caption in enumerate(found):
        assert list(caption.token_ids[-len(streamed[row]) :]) == streamed[row]
    with pytest.raises(InputError, match="streaming"):
        captioner.batch(IMAGES[:1], num_beams=2, on_token=lambda *_: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_lenght": 3}, "max_lenght.*unknown"),
        ({"num_beams": 0}, "num_beams 0"),
        ({"num_beams": True}, "num_beams"),
        ({"temperature": 0.0, "do_sample": True}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"early_stopping": "soon"}, "early_stopping"),
        ({"num_return_sequences": 2}, "num_return_sequences 2"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences 3"),
        ({"max_length": 1}, "max_length 1"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_arguments_are_refused(growing, arguments: dict[str, object], message: str):
    with pytest.raises(InputError, match=message) as caught:
        growing.batch(IMAGES[:1], **arguments)
    assert "\n" not in str(caught.value)


def test_a_prompt_that_does_not_fit_is_refused(fixed):
    with pytest.raises(InputError, match="shorten"):
        fixed.batch(IMAGES[:1], "a " * 40, max_new_tokens=5)


def test_logits_that_are_not_finite_are_reported(growing, monkeypatch: pytest.MonkeyPatch):
    from runtime.errors import BackendError

    decoder = growing.session("text_decoder")
    run = decoder.run

    def overflowing(feeds, net=None):
        outputs = run(feeds, net=net)
        outputs["logits"] = np.full_like(outputs["logits"], np.nan)
        return outputs

    monkeypatch.setattr(decoder, "run", overflowing)
    with pytest.raises(BackendError, match="not finite"):
        growing.batch(IMAGES[:1])
