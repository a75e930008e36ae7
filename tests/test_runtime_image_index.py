"""Features of images in a file, searches over them, and what a ranking goes by."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime import InputError, Matcher
from runtime.tasks.image_index import ImageIndex
from tests.runtime_support import (
    IMAGES,
    THREADS,
    reference_model,
    reference_pixels,
    reference_tokenizer,
)

TEXTS = ["two blue rings", "a large red circle above a star", "three green squares"]
NAMES = [f"{index}.png" for index in range(len(IMAGES))]


@pytest.fixture(scope="module")
def matcher(exported_artifacts: Path) -> Iterator[Matcher]:
    with Matcher.from_artifacts(exported_artifacts, target="onnx", threads=THREADS) as task:
        yield task


@pytest.fixture(scope="module")
def index(matcher: Matcher) -> ImageIndex:
    return matcher.embed_images(IMAGES, NAMES)


def expected(artifacts: Path) -> tuple[np.ndarray, np.ndarray]:
    """HuggingFace's cosines ``[images, texts]``, and its head's logits ``[images, texts, 2]``."""
    model, tokenizer = reference_model(artifacts, "itm"), reference_tokenizer(artifacts, "itm")
    pixels = torch.from_numpy(reference_pixels(artifacts, "itm"))
    cosines, logits = [], []
    with torch.no_grad():
        for text in TEXTS:
            asked = tokenizer([text] * len(pixels), return_tensors="pt")
            given = {"pixel_values": pixels, **asked}
            cosines.append(model(**given, use_itm_head=False).itm_score[:, 0].numpy())
            logits.append(model(**given).itm_score.numpy())
    return np.stack(cosines, axis=1), np.stack(logits, axis=1)


def test_a_search_finds_what_huggingface_finds(
    exported_artifacts: Path, matcher: Matcher, index: ImageIndex, tmp_path: Path
) -> None:
    cosine, _ = expected(exported_artifacts)
    index.save(tmp_path / "index.npz")
    again = tmp_path / "again.npz"
    ImageIndex.load(tmp_path / "index.npz").save(again)
    assert again.read_bytes() == (tmp_path / "index.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.npz", "index.npz"]
    for source in (index, again, str(again)):
        found = matcher.search(source, TEXTS, top_k=3)
        for text, mine in enumerate(found):
            order = np.argsort(-cosine[:, text], kind="stable")[:3]
            assert [name for name, _ in mine] == [NAMES[image] for image in order]
            assert [one for _, one in mine] == pytest.approx(cosine[order, text], abs=1e-5)
    assert len(matcher.search(index, TEXTS)[0]) == len(IMAGES)


@pytest.mark.parametrize("by", ["itm", "itc", "sum"])
def test_rankings_by_head_cosine_and_both(
    exported_artifacts: Path, matcher: Matcher, by: str
) -> None:
    """``sum`` is the score of BLIP's own retrieval: the logit for "fits" plus the cosine."""
    cosine, logits = expected(exported_artifacts)
    scores = {"itm": logits[:, :, 1] - logits[:, :, 0], "itc": cosine}
    score = scores.get(by, logits[:, :, 1] + cosine)
    ranking = matcher.rank(IMAGES, TEXTS, top_k=len(IMAGES))
    for image in range(len(IMAGES)):
        assert ranking.texts_for(image, by) == np.argsort(-score[image]).tolist()
    for text in range(len(TEXTS)):
        assert ranking.images_for(text, by) == np.argsort(-score[:, text]).tolist()
        if by == "sum":
            found = ranking.match(2, text).score(by)
            assert found == pytest.approx(score[2, text], abs=1e-5)
            assert matcher(IMAGES[2], TEXTS[text]).score(by) == pytest.approx(found, abs=1e-5)


def test_pairs_that_the_head_left_out_have_no_score_and_come_last(matcher: Matcher) -> None:
    ranking = matcher.rank(IMAGES[:2], TEXTS, top_k=1, images_per_text=0)
    for image in range(2):
        first, *others = ranking.texts_for(image, "sum")
        assert ranking.match(image, first).score("sum") is not None
        assert all(ranking.match(image, text).score("sum") is None for text in others)


def test_features_of_other_artifacts_are_refused(
    openvino_artifacts: Path, index: ImageIndex
) -> None:
    with Matcher.from_artifacts(openvino_artifacts, target="openvino", threads=THREADS) as other:
        with pytest.raises(InputError, match=r"other artifacts \(onnx f32; these are openvino f16"):
            other.search(index, TEXTS)
        assert other.search(index, TEXTS, same_artifacts=False)
        strange = ImageIndex(index.names, index.features, {**index.made_by, "checkpoint": "0"})
        with pytest.raises(InputError, match="another checkpoint"):
            other.search(strange, TEXTS, same_artifacts=False)


def test_images_without_a_path_need_names(matcher: Matcher) -> None:
    with pytest.raises(InputError, match="names="):
        matcher.embed_images(IMAGES[:1])
    with pytest.raises(InputError, match="2 names for 1 images"):
        matcher.embed_images(IMAGES[:1], ["a", "b"])


def archive(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def described(**changes: object) -> np.ndarray:
    description = {"schema_version": 1, "names": ["a"], "made_by": {}, **changes}
    return np.frombuffer(json.dumps(description).encode(), dtype=np.uint8)


ONE = np.ones((1, 4), dtype=np.float32)


@pytest.mark.parametrize(
    "data",
    [
        b"nothing of the kind",
        archive(features=ONE),
        archive(features=ONE, description=described(schema_version=2)),
        archive(features=ONE, description=described(names=["a", "b"])),
        archive(features=ONE, description=described(names=[1])),
        archive(features=ONE, description=described(names=3)),
        archive(features=ONE, description=np.frombuffer(b"[1]", dtype=np.uint8)),
        archive(features=ONE * np.nan, description=described()),
        archive(features=np.array([{"a": 1}], dtype=object), description=described()),
        archive(features=ONE, description=described())[:-30],
    ],
)
def test_a_file_of_something_else_is_one_clear_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "index.npz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"index\.npz: no file of image features"):
        ImageIndex.load(path)
    with pytest.raises(InputError, match="cannot be read"):
        ImageIndex.load(tmp_path / "none.npz")


def test_a_compressed_file_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "index.npz"
    np.savez_compressed(path, features=ONE, description=described())
    with pytest.raises(InputError, match="compressed"):
        ImageIndex.load(path)
