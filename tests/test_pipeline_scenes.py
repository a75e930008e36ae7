"""The scene set: determinism, splits, one right answer, hard negatives, vocabulary."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pipeline.scenes import (
    CAPTION_PROMPT,
    caption,
    draw,
    make_scene,
    matching_pairs,
    questions,
    scenes,
    vocabulary,
)
from pipeline.scenes.description import BACKGROUNDS, COLORS, SHAPES, SIZES

MANY = 800
GOLDEN_CAPTION = "a white ring left of two blue rings"
GOLDEN_HEIGHT, GOLDEN_WIDTH, GOLDEN_MEAN = 172, 142, 98.818


@pytest.fixture(scope="module")
def heldout():
    return list(scenes(MANY))


@pytest.fixture(scope="module")
def training():
    return list(scenes(MANY, "train"))


def test_same_index_gives_same_scene_and_pixels():
    for index in (0, 7, 12345):
        first, second = make_scene(index), make_scene(index)
        assert first == second
        assert questions(first) == questions(second)
        assert matching_pairs(first) == matching_pairs(second)
        assert np.array_equal(np.asarray(draw(first)), np.asarray(draw(second)))


def test_pixels_are_the_ones_recorded():
    # A change here means that every recorded figure and golden answer needs measuring anew.
    image = np.asarray(draw(make_scene(0)), dtype=np.int64)
    assert image.shape == (GOLDEN_HEIGHT, GOLDEN_WIDTH, 3)
    assert abs(float(image.mean()) - GOLDEN_MEAN) < 0.5
    assert caption(make_scene(0)) == GOLDEN_CAPTION


def test_scenes_are_a_window_on_one_sequence():
    assert next(iter(scenes(5, "train", start=3))) == make_scene(3, "train")
    assert make_scene(3, "train") != make_scene(3, "heldout")
    with pytest.raises(ValueError, match="negative"):
        make_scene(-1)


def test_images_are_rgb_and_larger_than_the_models_input(heldout):
    sizes = set()
    for scene in heldout[:60]:
        image = draw(scene)
        assert image.mode == "RGB"
        assert image.size == (scene.width, scene.height)
        assert 120 <= min(image.size) <= max(image.size) <= 200
        sizes.add(image.size)
    assert len(sizes) > 30


def test_objects_lie_on_the_canvas_and_apart(heldout):
    for scene in heldout:
        for item in scene.objects:
            x, y = item.x * scene.width, item.y * scene.height
            assert min(x, scene.width - x, y, scene.height - y) > 0.75 * item.radius
        for position, item in enumerate(scene.objects):
            for other in scene.objects[:position]:
                across = (item.x - other.x) * scene.width
                down = (item.y - other.y) * scene.height
                assert (across**2 + down**2) ** 0.5 > 0.9 * (item.radius + other.radius)


def test_captions_follow_what_is_drawn(heldout):
    """Left first, top first: the caption's order and relation are those of the pixels."""
    for scene in heldout:
        if scene.description.kind not in ("pair", "mixed"):
            continue
        first, last = scene.objects[0], scene.objects[-1]
        across, down = last.x - first.x, last.y - first.y
        if " left of " in caption(scene):
            assert across > 0.38 > abs(down)
        else:
            assert " above " in caption(scene)
            assert down > 0.38 > abs(across)


def test_no_heldout_caption_is_ever_seen_in_training(heldout, training):
    unseen = {caption(scene) for scene in heldout}
    seen = {caption(scene) for scene in training}
    for scene in training:
        seen.update(pair.text for pair in matching_pairs(scene))
    assert len(unseen) > MANY / 2
    assert not unseen & seen


def test_one_caption_per_meaning(heldout, training):
    """Scenes that differ in anything that a caption tells differ in their captions."""
    told = {}
    for scene in [*heldout, *training]:
        meaning = scene.description
        background = meaning.background if meaning.kind == "single" else ""
        key = (meaning.kind, meaning.axis, meaning.phrases, background)
        assert told.setdefault(caption(scene), key) == key


def test_captions_are_short_and_varied(heldout):
    captions = [caption(scene) for scene in heldout]
    assert max(len(text.split()) for text in captions) <= 11
    for word in ("left of", "above", "side by side", "in a row", "in a column", "stripes", "dots"):
        assert any(word in text for text in captions), word


def test_questions_have_very_different_lengths(heldout):
    lengths = {len(item.question.split()) for scene in heldout for item in questions(scene)}
    assert min(lengths) == 3
    assert max(lengths) >= 16
    assert len(lengths) >= 10


def test_questions_cover_everything_with_one_short_answer(heldout):
    kinds, answers = set(), set()
    for scene in heldout:
        asked = questions(scene)
        told = {item.question: item.answer for item in asked}
        assert all(told[item.question] == item.answer for item in asked)
        assert all(1 <= len(item.answer.split()) <= 2 for item in asked)
        kinds.update(item.kind for item in asked)
        answers.update(item.answer for item in asked)
    assert {"color", "shape", "count", "size", "relation", "background", "beside"} <= kinds
    assert {*COLORS, *SHAPES, *SIZES, *BACKGROUNDS, "yes", "no", "zero", "three"} <= answers


def test_yes_and_no_are_balanced(heldout):
    for kind in ("relation", "existence"):
        said = [i.answer for scene in heldout for i in questions(scene) if i.kind == kind]
        assert 0.42 < said.count("yes") / len(said) < 0.58


def test_count_answers_match_the_objects(heldout):
    names = {"zero": 0, "one": 1, "two": 2, "three": 3}
    for scene in heldout[:300]:
        first = next(item for item in questions(scene) if item.kind == "count")
        assert names[first.answer] == len(scene.objects)


def test_matching_texts_are_one_right_and_several_wrong(heldout, training):
    kinds = set()
    for scene in [*heldout, *training]:
        right, *wrong = matching_pairs(scene)
        assert right.match
        assert right.text == caption(scene)
        assert len(wrong) >= 2
        assert all(not pair.match and pair.text != right.text for pair in wrong)
        kinds.update(pair.kind for pair in wrong)
    assert kinds == {"color", "shape", "size", "background", "count", "axis", "order", "crossed"}


def test_vocabulary_holds_every_word(heldout, training):
    known = set(vocabulary())
    assert set(CAPTION_PROMPT.split()) <= known
    used = set()
    for scene in [*heldout, *training]:
        texts = [caption(scene), *(pair.text for pair in matching_pairs(scene))]
        for item in questions(scene):
            texts += [item.question, item.answer]
        used.update(re.findall(r"[a-z]+|[^\sa-z]", " ".join(texts)))
    assert used <= known
    assert known - used <= {"an", *CAPTION_PROMPT.split()}
