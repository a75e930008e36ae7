"""Answers of a mode are judged on pictures as that mode's users have them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.files.manifests import ImageSettings
from runtime.preprocessing.images import load_image
from runtime.preprocessing.processor import ImagePreprocessor
from verify.answers.cases import generation_cases
from verify.answers.whole_answers import generated_tokens, given_to, match_scores

SETTINGS = ImageSettings(
    height=96,
    width=96,
    resample="bicubic",
    rescale_factor=1 / 255,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
)


def task(*, scaled_jpeg: bool) -> Any:
    """A task that answers with what it was given."""

    def ask(images: list[Any], texts: list[str], **_: Any) -> list[Any]:
        assert len(images) == len(texts)
        return [SimpleNamespace(token_ids=image) for image in images]

    return SimpleNamespace(
        preprocessor=ImagePreprocessor(SETTINGS, scaled_jpeg=scaled_jpeg), ask=ask
    )


def test_exact_modes_get_the_pictures_themselves():
    (case,) = generation_cases("caption", 1, 0)
    assert given_to(task(scaled_jpeg=False), case) is case.image()


@pytest.mark.parametrize("scene", range(3))
def test_other_modes_get_files_that_are_decoded_at_a_part_of_their_size(scene: int):
    case = generation_cases("caption", 3, 0)[scene]
    other = task(scaled_jpeg=True)
    data = given_to(other, case)
    assert isinstance(data, bytes)
    assert load_image(data).size > load_image(data, at_least=2 * SETTINGS.width).size
    # What is judged is still the picture of the case.
    exact = ImagePreprocessor(SETTINGS)([case.image()])
    found = other.preprocessor([data])
    assert not np.array_equal(found, exact)
    assert np.abs(found - exact).mean() < 0.05
    mirrored = case.image().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.abs(found - ImagePreprocessor(SETTINGS)([mirrored])).mean() > 0.05


def test_tokens_and_scores_come_from_them():
    cases = generation_cases("itm", 2, 0)
    for mode, kind in ((False, Image.Image), (True, bytes)):
        given = generated_tokens(task(scaled_jpeg=mode), cases, 1)
        given += [match.token_ids for match in match_scores(task(scaled_jpeg=mode), cases)]
        assert len(given) == 4
        assert all(isinstance(one, kind) for one in given)
