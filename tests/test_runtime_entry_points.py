"""Every way in gives HuggingFace's answers: rankings, prepared images, arrays, ids with a mask."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.scenes import matching_pairs
from runtime import BlipModel, Captioner, Matcher
from tests.runtime_support import (
    IMAGES,
    SCENES,
    THREADS,
    reference_caption,
    reference_model,
    reference_pixels,
    reference_tokenizer,
    trimmed,
)

OPTIONS: dict[str, Any] = {"target": "onnx", "threads": THREADS}
TEXTS = [matching_pairs(scene)[0].text for scene in SCENES[:5]]


@pytest.fixture(scope="module")
def captioner(exported_artifacts: Path):
    with Captioner.from_artifacts(exported_artifacts, **OPTIONS) as task:
        yield task


@pytest.fixture(scope="module")
def scores(exported_artifacts: Path) -> tuple[np.ndarray, np.ndarray]:
    """HuggingFace's cosine and probability of every image with every text."""
    model = reference_model(exported_artifacts, "itm")
    tokenizer = reference_tokenizer(exported_artifacts, "itm")
    pixels = torch.from_numpy(reference_pixels(exported_artifacts, "itm"))
    cosines, probabilities = [], []
    for text in TEXTS:
        encoded = tokenizer([text] * len(pixels), return_tensors="pt")
        ids = {key: encoded[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            head = model(pixel_values=pixels, **ids).itm_score
            cosine = model(pixel_values=pixels, **ids, use_itm_head=False).itm_score
        probabilities.append(head.softmax(-1)[:, 1].numpy())
        cosines.append(cosine[:, 0].numpy())
    return np.stack(cosines, axis=1), np.stack(probabilities, axis=1)


def best(values: np.ndarray, count: int) -> np.ndarray:
    """True at the ``count`` greatest values of each row."""
    return values >= np.sort(values, axis=1)[:, -count][:, None]


@pytest.mark.parametrize("top_k", [1, 3, 100])
def test_rankings_are_those_of_huggingface(
    exported_artifacts: Path, scores: tuple[np.ndarray, np.ndarray], top_k: int
):
    cosine, probability = scores
    with Matcher.from_artifacts(exported_artifacts, **OPTIONS) as matcher:
        found = matcher.rank(IMAGES, TEXTS, top_k=top_k)
    assert np.allclose(found.cosine, cosine, atol=1e-4)
    images, texts = cosine.shape
    looked_at = best(cosine, min(top_k, texts)) | best(cosine.T, min(top_k, images)).T
    assert (~np.isnan(found.probability) == looked_at).all()
    assert np.allclose(found.probability[looked_at], probability[looked_at], atol=1e-4)
    # First those that the head looked at, by probability, then the others by cosine.
    ordered = np.where(looked_at, 2.0 + probability, cosine)
    for text in range(texts):
        expected = ordered[:, text]
        assert np.allclose(expected[found.images_for(text)], -np.sort(-expected), atol=1e-4)
        assert sorted(found.images_for(text)) == list(range(images))
    for image in range(images):
        expected = ordered[image]
        assert np.allclose(expected[found.texts_for(image)], -np.sort(-expected), atol=1e-4)


def test_images_in_every_form_give_the_same(
    exported_artifacts: Path, captioner: Captioner, tmp_path: Path
):
    image = IMAGES[0].convert("RGB")
    path = tmp_path / "a.png"
    image.save(path)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    forms = {
        "Pillow": image,
        "path": path,
        "name": str(path),
        "bytes": stream.getvalue(),
        "array": np.asarray(image),
        "array, not contiguous": np.asarray(image)[:, ::-1][:, ::-1],
        "array with alpha": np.asarray(image.convert("RGBA")),
        "prepared": captioner.preprocessor.prepare(image),
    }
    pixels = reference_pixels(exported_artifacts, "caption")[:1]
    (expected,) = reference_caption(exported_artifacts, pixels, None)
    found = {name: list(captioner(form).token_ids) for name, form in forms.items()}
    assert found == dict.fromkeys(forms, expected)
    streamed = [one for _, one in captioner.stream(list(forms.values()))]
    assert [list(one.token_ids) for one in streamed] == [expected] * len(forms)
    grey = np.asarray(image.convert("L"))
    assert captioner(grey) == captioner(grey[:, :, None]) == captioner(image.convert("L"))


@pytest.mark.filterwarnings("ignore:Using the model-agnostic")
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("beams", [1, 3])
def test_prompts_with_a_mask(exported_artifacts: Path, kind: str, side: str, beams: int):
    """Uneven prompts, padded by the checkpoint's own tokenizer; each row as HuggingFace alone."""
    prompts = ["a picture of", "a", "a picture of two red"]
    tokenizer = reference_tokenizer(exported_artifacts, "caption")
    encoded = tokenizer(prompts, padding=True, padding_side=side, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    assert not mask.bool().all()
    pixels = reference_pixels(exported_artifacts, "caption")[: len(prompts)]
    model = BlipModel.from_artifacts(exported_artifacts, **OPTIONS)
    if kind == "torch":
        found = model.generate_caption(torch.from_numpy(pixels), ids, mask, num_beams=beams)
        assert isinstance(found, torch.Tensor)
    else:
        found = model.generate_caption(pixels, ids.numpy(), mask.numpy(), num_beams=beams)
    text = model.captioner.manifest.text
    for row, prompt in enumerate(prompts):
        (alone,) = reference_caption(
            exported_artifacts, pixels[row : row + 1], prompt, num_beams=beams
        )
        expected = trimmed(alone, text.end_token_id, text.pad_token_id)
        assert trimmed(found[row], text.end_token_id, text.pad_token_id) == expected
