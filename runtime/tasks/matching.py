"""Image-text matching: how well a text fits an image, and rankings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..decoding.batching import chunk_rows, chunks, run_rows
from ..errors import InputError
from ..files.number_formats import softmax
from ..preprocessing.images import ImageSource
from .task import Task
from .texts import padded_texts
from .timing import Timings


@dataclass(frozen=True)
class Match:
    """How well a text fits an image."""

    #: that the text describes the image, by the matching head, between 0 and 1
    probability: float
    #: of the contrastive features, between -1 and 1
    cosine: float
    #: the matching head's two logits: does not fit, fits
    itm_logits: Tuple[float, float]


@dataclass(frozen=True)
class Ranking:
    """Texts ranked for each image."""

    #: contrastive cosine of every pair ``[images, texts]``
    cosine: np.ndarray
    #: matching probability ``[images, texts]``; NaN where the pair was not among the best by cosine
    probability: np.ndarray

    def texts_for(self, image: int) -> List[int]:
        """Text numbers, best first: by probability where known, then by cosine."""
        return _order(self.probability[image], self.cosine[image])

    def images_for(self, text: int) -> List[int]:
        """Image numbers, best first: by probability where known, then by cosine."""
        return _order(self.probability[:, text], self.cosine[:, text])


class Matcher(Task):
    """Scores texts against images."""

    task = "itm"

    def __call__(self, image: ImageSource, text: str) -> Match:
        """Matches one text with one image; see ``batch``."""
        return self.batch([image], [text])[0]

    def batch(
        self,
        images: Sequence[ImageSource],
        texts: Sequence[str],
        *,
        timings: Optional[Timings] = None,
    ) -> List[Match]:
        """Matches ``texts[i]`` with ``images[i]``, stage by stage, in bounded memory.

        Raises:
            InputError: an image or text that cannot be used.
        """
        if isinstance(texts, str) or len(images) != len(texts):
            raise InputError(f"texts: pass one per image ({len(images)})")
        found = self.pairs(images, [[text] for text in texts], timings=timings)
        return [matches[0] for matches in found]

    def pairs(
        self,
        images: Sequence[ImageSource],
        texts: Sequence[Sequence[str]],
        *,
        timings: Optional[Timings] = None,
    ) -> List[List[Match]]:
        """Matches every text of ``texts[i]`` with ``images[i]``, which is encoded once.

        Raises:
            InputError: an image or text that cannot be used.
        """
        if len(images) != len(texts) or any(isinstance(mine, str) for mine in texts):
            raise InputError(f"texts: pass one list of texts per image ({len(images)})")
        timings = timings or Timings()
        matches: List[List[Match]] = []
        for part in chunks(range(len(images)), self.images_at_once()):
            embeds = self.encode([images[i] for i in part], timings=timings)
            rows = [row for row, index in enumerate(part) for _ in texts[index]]
            mine = [text for index in part for text in texts[index]]
            flat = iter(self._matches(embeds, mine, rows, timings))
            matches += [[next(flat) for _ in texts[index]] for index in part]
        return matches

    def _matches(
        self, embeds: np.ndarray, texts: List[str], rows: List[int], timings: Timings
    ) -> List[Match]:
        if not texts:
            return []
        image_features = self.image_features(embeds, timings=timings)[rows]
        text_features = self.text_features(texts, timings=timings)
        logits = self.itm_logits(embeds, texts, rows, timings=timings)
        probabilities = softmax(logits)[:, 1]
        cosines = (image_features * text_features).sum(axis=1)
        return [
            Match(float(p), float(c), (float(a), float(b)))
            for p, c, (a, b) in zip(probabilities, cosines, logits)
        ]

    def rank(
        self,
        images: Sequence[ImageSource],
        texts: Sequence[str],
        *,
        top_k: int = 10,
        images_per_text: Optional[int] = None,
        text_features: Optional[np.ndarray] = None,
        timings: Optional[Timings] = None,
    ) -> Ranking:
        """Ranks texts for images and images for texts: by cosine, the best by the matching head.

        Args:
            images: the images.
            texts: the texts.
            top_k: best texts per image, and best images per text, that the head looks at.
            images_per_text: best images per text instead; with 0, an image's ranking does not
                depend on the other images.
            text_features: of the texts, where many groups of images are ranked against them.
            timings: collects the time of each stage.

        Raises:
            InputError: an image or text that cannot be used, or nothing to rank.
        """
        if not images or not texts:
            raise InputError("rank: needs at least one image and one text")
        if top_k < 0:
            raise InputError(f"top_k {top_k}: must be at least 0")
        timings = timings or Timings()
        embeds = self.encode(images, timings=timings)
        if text_features is None:
            text_features = self.text_features(texts, timings=timings)
        cosine = self.image_features(embeds, timings=timings) @ text_features.T
        per_text = top_k if images_per_text is None else images_per_text
        wanted = _best(cosine, top_k) | _best(cosine.T, per_text).T
        probability = np.full(cosine.shape, np.nan, dtype=np.float32)
        rows, columns = np.nonzero(wanted)
        if len(rows):
            asked = [texts[column] for column in columns.tolist()]
            logits = self.itm_logits(embeds, asked, rows.tolist(), timings=timings)
            probability[rows, columns] = softmax(logits)[:, 1]
        return Ranking(cosine=cosine, probability=probability)

    def encode(
        self, images: Sequence[ImageSource], *, timings: Optional[Timings] = None
    ) -> np.ndarray:
        """Image states ``[images, image tokens, hidden]``."""
        timings = timings or Timings()
        states = []
        for part in chunks(images, self.images_at_once()):
            with timings.measure("preprocess", len(part)):
                feeds = {"pixel_values": self.preprocessor(part)}
            with timings.measure("vision", len(part)):
                states.append(run_rows(self.session("vision_encoder"), feeds)["image_embeds"])
        return np.concatenate(states)

    def image_features(
        self, image_embeds: np.ndarray, *, timings: Optional[Timings] = None
    ) -> np.ndarray:
        """Contrastive features ``[images, features]`` of unit length, from ``encode``."""
        timings = timings or Timings()
        session = self.session("vision_projection")
        with timings.measure("vision_projection", len(image_embeds)):
            parts = [
                run_rows(session, {"image_embeds": part})["image_features"]
                for part in chunks_of(image_embeds, self.images_at_once())
            ]
        return np.concatenate(parts)

    def text_features(
        self, texts: Sequence[str], *, timings: Optional[Timings] = None
    ) -> np.ndarray:
        """Contrastive features ``[texts, features]`` of unit length."""
        timings = timings or Timings()
        session = self.session("text_encoder_unimodal")
        # Contrastive features start with [CLS] whatever the matching head was trained with.
        rows = [self.tokenizer.encode(text) for text in texts]
        parts = []
        with timings.measure("text_encoder_unimodal", len(texts)):
            for part in chunks(rows, self.images_at_once()):
                ids, mask = padded_texts(session, part, self.manifest.text)
                feeds = {"input_ids": ids, "attention_mask": mask}
                parts.append(run_rows(session, feeds)["text_features"])
        return np.concatenate(parts)

    def itm_logits(
        self,
        image_embeds: np.ndarray,
        texts: Sequence[str],
        images: Sequence[int],
        *,
        timings: Optional[Timings] = None,
    ) -> np.ndarray:
        """The matching head's logits ``[texts, 2]`` of ``texts[i]`` with image ``images[i]``."""
        timings = timings or Timings()
        session = self.session("text_encoder")
        rows = [self.tokenizer.question(text) for text in texts]
        parts = []
        with timings.measure("text_encoder", len(texts)):
            for part in chunks(range(len(rows)), self.images_at_once()):
                ids, mask = padded_texts(session, [rows[i] for i in part], self.manifest.text)
                feeds: Dict[str, Any] = {
                    "input_ids": ids,
                    "attention_mask": mask,
                    "image_embeds": image_embeds[[images[i] for i in part]],
                }
                parts.append(run_rows(session, feeds)["itm_logits"])
        return np.concatenate(parts)

    def images_at_once(self) -> int:
        """See ``Task``."""
        size, image = self.manifest.dimensions, self.manifest.image
        states = 2 * size.image_tokens * size.vision_hidden_size
        floats = 3 * image.height * image.width + states
        return chunk_rows(self.session("vision_encoder"), 4 * floats)


def chunks_of(array: np.ndarray, size: int) -> List[np.ndarray]:
    """Consecutive slices of at most ``size`` rows."""
    return [array[start : start + size] for start in range(0, len(array), size)]


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """True at the ``count`` largest values of each row."""
    chosen = np.zeros(scores.shape, dtype=bool)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


def _order(probability: np.ndarray, cosine: np.ndarray) -> List[int]:
    known = np.nan_to_num(probability, nan=-1.0)
    order: List[int] = np.lexsort((-cosine, -known)).tolist()
    return order
