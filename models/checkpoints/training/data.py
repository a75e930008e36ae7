"""The training pool: scenes drawn, resized and tokenised once, then sampled in batches."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.checkpoints.training.architecture import IMAGE_SIZE
from pipeline.scenes import (
    CAPTION_PROMPT,
    caption,
    draw,
    make_scene,
    matching_pairs,
    questions,
    scenes,
)
from pipeline.scenes.scene import SCENES_VERSION

QUESTIONS_PER_IMAGE = 3
TEXTS_PER_IMAGE = 3
PROMPTED_SHARE = 0.25
EAGERNESS = 0.3
"""Questions answered yes or no are the hardest to learn; the smaller this, the more are asked."""

SHIFT = 4
"""Training images are moved by at most this many pixels either way."""

_CHUNK = 250
_Ids = NDArray[np.int64]


@dataclass
class Pool:
    """Images ``uint8 [N, I, I, 3]`` and the token ids of everything said about them.

    Ids are ``int16`` and padded with 0: captions ``[N, S]``, questions ``[N, Q, S]``, answers
    ``[N, Q, S]``, texts ``[N, M, S]`` (the right one first). The counts say how many are real.
    """

    images: NDArray[np.uint8]
    captions: NDArray[np.int16]
    questions: NDArray[np.int16]
    answers: NDArray[np.int16]
    question_counts: NDArray[np.int64]
    texts: NDArray[np.int16]
    text_counts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class Batch:
    """One training batch; B images, K questions or texts per image, S tokens.

    ``pixels`` uint8 ``[B, I, I, 3]``; ``caption_ids`` and ``caption_labels`` int64 ``[B, S]``;
    ``question_ids``, ``answer_ids``, ``text_ids`` int64 ``[B, K, S]``; ``text_labels`` ``[B, K]``.
    """

    pixels: NDArray[np.uint8]
    caption_ids: _Ids
    caption_labels: _Ids
    question_ids: _Ids
    answer_ids: _Ids
    text_ids: _Ids
    text_labels: _Ids


def load_pool(folder: Path, count: int, tokenizer: Any) -> Pool:
    """Training scenes from a file in ``folder``, drawn now unless they are there."""
    path = folder / f"pool-version{SCENES_VERSION}-{count}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"{path.stem}.new.npz"
        np.savez(fresh, **vars(build_pool(count, tokenizer)))
        fresh.replace(path)
    with np.load(path) as stored:
        return Pool(**stored)


def build_pool(count: int, tokenizer: Any) -> Pool:
    """Draws and tokenises the first ``count`` training scenes."""
    with ProcessPoolExecutor() as executor:
        images = list(executor.map(_draw, range(count), chunksize=_CHUNK))
    made = list(scenes(count, "train"))
    asked = [questions(scene) for scene in made]
    paired = [matching_pairs(scene) for scene in made]
    return Pool(
        images=np.stack(images),
        captions=_encode([[caption(scene)] for scene in made], tokenizer)[:, 0],
        questions=_encode([[item.question for item in items] for items in asked], tokenizer),
        answers=_encode([[item.answer for item in items] for items in asked], tokenizer),
        question_counts=np.array([len(items) for items in asked]),
        texts=_encode([[pair.text for pair in pairs] for pairs in paired], tokenizer),
        text_counts=np.array([len(pairs) for pairs in paired]),
    )


def _draw(index: int) -> NDArray[np.uint8]:
    """A scene as the image processor resizes it; uint8 ``[I, I, 3]``."""
    side = (IMAGE_SIZE, IMAGE_SIZE)
    return np.asarray(draw(make_scene(index, "train")).resize(side, Image.Resampling.BICUBIC))


def _encode(groups: Sequence[Sequence[str]], tokenizer: Any) -> NDArray[np.int16]:
    """Tokenise groups of texts into padded ids, int16 ``[groups, most texts, most tokens]``."""
    flat = [text for group in groups for text in group]
    unique = list(dict.fromkeys(flat))
    encoded = dict(zip(unique, tokenizer(unique)["input_ids"], strict=True))
    longest = max(len(ids) for ids in encoded.values())
    widest = max(len(group) for group in groups)
    result = np.zeros((len(groups), widest, longest), dtype=np.int16)
    for row, group in enumerate(groups):
        for column, text in enumerate(group):
            ids = encoded[text]
            result[row, column, : len(ids)] = ids
    return result


class BatchMaker:
    """Samples training batches from a pool; a batch depends on seed and step alone."""

    def __init__(self, pool: Pool, tokenizer: Any, batch_size: int, seed: int) -> None:
        self._pool = pool
        self._batch_size = batch_size
        self._seed = seed
        self._start = int(tokenizer.bos_token_id)
        self._judgements = tokenizer.convert_tokens_to_ids(["yes", "no"])
        self._prompt = np.array(tokenizer(CAPTION_PROMPT)["input_ids"][1:-1])

    def make(self, step: int) -> Batch:
        """Return the batch of one training step."""
        pool, size = self._pool, self._batch_size
        source = np.random.default_rng((self._seed, step))
        rows = source.integers(0, len(pool), size)
        eager = np.isin(pool.answers[rows, :, 1], self._judgements)
        counts = pool.question_counts[rows]
        asked = _choose(source, counts, QUESTIONS_PER_IMAGE, first=0, eager=eager)
        chosen = _choose(source, pool.text_counts[rows], TEXTS_PER_IMAGE - 1, first=1)
        chosen = np.concatenate([np.zeros((size, 1), dtype=np.int64), chosen], axis=1)
        answers = pool.answers[rows[:, None], asked].astype(np.int64)
        answers[:, :, 0] = self._start
        caption_ids, caption_labels = self._captions(pool.captions[rows].astype(np.int64), source)
        return Batch(
            pixels=_shifted(pool.images[rows], source),
            caption_ids=caption_ids,
            caption_labels=caption_labels,
            question_ids=pool.questions[rows[:, None], asked].astype(np.int64),
            answer_ids=answers,
            text_ids=pool.texts[rows[:, None], chosen].astype(np.int64),
            text_labels=(chosen == 0).astype(np.int64),
        )

    def _captions(self, ids: _Ids, source: np.random.Generator) -> tuple[_Ids, _Ids]:
        """Put [DEC] first and, in some rows, the prompt after it, without labels."""
        count, length = ids.shape
        prompt = len(self._prompt)
        inputs = np.zeros((count, length + prompt), dtype=np.int64)
        inputs[:, 0] = self._start
        labels = np.full_like(inputs, -100)
        prompted = source.random(count) < PROMPTED_SHARE
        for rows, offset in ((~prompted, 0), (prompted, prompt)):
            inputs[rows, 1 + offset : length + offset] = ids[rows, 1:]
            real = np.where(ids[rows, 1:] == 0, -100, ids[rows, 1:])
            labels[rows, 1 + offset : length + offset] = real
        inputs[prompted, 1 : 1 + prompt] = self._prompt
        return inputs, labels


def _choose(
    source: np.random.Generator,
    counts: _Ids,
    amount: int,
    first: int,
    eager: NDArray[np.bool_] | None = None,
) -> _Ids:
    """Choose different positions in ``[first, count)`` per row; int64 ``[B, amount]``.

    Positions that are ``eager`` (bool ``[B, at least the highest count]``) come more often.
    """
    keys = source.random((len(counts), int(counts.max())))
    if eager is not None:
        keys[eager[:, : keys.shape[1]]] *= EAGERNESS
    positions = np.arange(keys.shape[1])[None, :]
    keys[(positions >= counts[:, None]) | (positions < first)] = 2.0
    return np.argsort(keys, axis=1)[:, :amount]


def _shifted(images: NDArray[np.uint8], source: np.random.Generator) -> NDArray[np.uint8]:
    """Move every image by a few pixels, repeating its border."""
    count, height, width, _ = images.shape
    down = source.integers(-SHIFT, SHIFT + 1, (count, 1))
    across = source.integers(-SHIFT, SHIFT + 1, (count, 1))
    rows = np.clip(np.arange(height)[None, :] + down, 0, height - 1)
    columns = np.clip(np.arange(width)[None, :] + across, 0, width - 1)
    every = np.arange(count)[:, None, None]
    moved: NDArray[np.uint8] = images[every, rows[:, :, None], columns[:, None, :]]
    return moved
