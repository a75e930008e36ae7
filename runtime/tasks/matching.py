"""Image-text matching: how well a text fits an image, and rankings."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..decoding.batching import StopSignal, Timings, chunks, run_rows, stage
from ..errors import InputError
from ..files.number_formats import softmax
from ..preprocessing.images import ImageSource
from .task import Result, Task, check_pairs


@dataclass(frozen=True)
class Match(Result):
    """How well a text fits an image."""

    #: that the text describes the image, by the matching head, between 0 and 1
    probability: float
    #: of the contrastive features, between -1 and 1
    cosine: float
    #: the matching head's two logits: does not fit, fits
    itm_logits: Tuple[float, float]

    @property
    def _known(self) -> Optional[float]:
        return None if np.isnan(self.probability) else self.probability

    @property
    def shown(self) -> str:
        """See ``Result``."""
        probability = "-" if self._known is None else f"{self._known:.4f}"
        return f"probability {probability}  cosine {self.cosine:.4f}"

    def record(self) -> Dict[str, Any]:
        """See ``Result``; a probability of NaN is unknown."""
        return {"probability": self._known, "cosine": self.cosine}


@dataclass(frozen=True)
class Ranking:
    """Texts ranked for each image."""

    #: contrastive cosine of every pair ``[images, texts]``
    cosine: np.ndarray
    #: matching probability ``[images, texts]``; NaN where the pair was not among the best by cosine
    probability: np.ndarray

    def match(self, image: int, text: int) -> Match:
        """One pair's scores, without logits."""
        scores = (float(self.probability[image, text]), float(self.cosine[image, text]))
        return Match(*scores, (float("nan"), float("nan")))

    def texts_for(self, image: int) -> List[int]:
        """Text numbers, best first: by probability where known, then by cosine."""
        return _order(self.probability[image], self.cosine[image])

    def images_for(self, text: int) -> List[int]:
        """Image numbers, best first: by probability where known, then by cosine."""
        return _order(self.probability[:, text], self.cosine[:, text])


class Matcher(Task[Match]):
    """Scores texts against images: ``matcher(image, text)``. An image is encoded once."""

    task = "itm"
    asks = "text"

    def batch(
        self, images: Sequence[ImageSource], texts: Sequence[str], **options: Any
    ) -> List[Match]:
        """Matches ``texts[i]`` with ``images[i]``; see ``ask``."""
        if isinstance(texts, str):
            raise InputError(f"texts: pass one per image ({len(images)})")
        return self.ask(list(images), list(texts), **options)

    def pairs(
        self,
        images: Sequence[ImageSource],
        texts: Sequence[Sequence[Optional[str]]],
        *,
        timings: Optional[Timings] = None,
        stop: Optional[StopSignal] = None,
        **options: Any,
    ) -> List[List[Match]]:
        """See ``Task``; there are no further options."""
        check_pairs(images, texts, "texts")
        if options:
            raise InputError(f"argument '{min(options)}': matching takes none; leave it out")
        matches: List[List[Match]] = []
        for part in chunks(range(len(images)), self.images_at_once()):
            embeds = self.encode([images[i] for i in part], timings=timings, stop=stop)
            rows = [row for row, index in enumerate(part) for _ in texts[index]]
            mine = [text for index in part for text in texts[index]]
            flat = iter(self._matches(embeds, mine, rows, timings, stop))
            matches += [[next(flat) for _ in texts[index]] for index in part]
        return matches

    def _matches(
        self,
        embeds: np.ndarray,
        texts: Sequence[Optional[str]],
        rows: Sequence[int],
        timings: Optional[Timings],
        stop: Optional[StopSignal],
    ) -> List[Match]:
        if not texts:
            return []
        image_features = self.image_features(embeds, timings=timings, stop=stop)[rows]
        text_features = self.text_features(texts, timings=timings, stop=stop)
        logits = self.itm_logits(embeds, texts, rows, timings=timings, stop=stop)
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
        stop: Optional[StopSignal] = None,
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
            stop: ends the work at its next stage.

        Raises:
            InputError: an image or text that cannot be used, or nothing to rank.
        """
        if not images or not texts:
            raise InputError("rank: needs at least one image and one text")
        if top_k < 0:
            raise InputError(f"top_k {top_k}: must be at least 0")
        embeds = self.encode(images, timings=timings, stop=stop)
        if text_features is None:
            text_features = self.text_features(texts, timings=timings, stop=stop)
        cosine = self.image_features(embeds, timings=timings, stop=stop) @ text_features.T
        per_text = top_k if images_per_text is None else images_per_text
        wanted = _best(cosine, top_k) | _best(cosine.T, per_text).T
        probability = np.full(cosine.shape, np.nan, dtype=np.float32)
        rows, columns = np.nonzero(wanted)
        if len(rows):
            asked = [texts[column] for column in columns.tolist()]
            logits = self.itm_logits(embeds, asked, rows.tolist(), timings=timings, stop=stop)
            probability[rows, columns] = softmax(logits)[:, 1]
        return Ranking(cosine=cosine, probability=probability)

    def image_features(
        self,
        image_embeds: np.ndarray,
        *,
        timings: Optional[Timings] = None,
        stop: Optional[StopSignal] = None,
    ) -> np.ndarray:
        """Contrastive features ``[images, features]`` of unit length, from ``encode``."""
        session, size = self.session("vision_projection"), self.images_at_once()
        with stage("vision_projection", len(image_embeds), timings, stop):
            parts = [
                run_rows(session, {"image_embeds": image_embeds[start : start + size]})
                for start in range(0, len(image_embeds), size)
            ]
        return np.concatenate([part["image_features"] for part in parts])

    def text_features(
        self,
        texts: Sequence[Optional[str]],
        *,
        timings: Optional[Timings] = None,
        stop: Optional[StopSignal] = None,
    ) -> np.ndarray:
        """Contrastive features ``[texts, features]`` of unit length."""
        # Contrastive features start with [CLS] whatever the matching head was trained with.
        first = self.manifest.text.cls_token_id
        rows = [[first, *self.read_text.tokens(text)[1:]] for text in texts]
        component = "text_encoder_unimodal"
        with stage(component, len(texts), timings, stop):
            parts = [
                self.run_texts(component, part)[0]["text_features"]
                for part in chunks(rows, self.images_at_once())
            ]
        return np.concatenate(parts)

    def itm_logits(
        self,
        image_embeds: np.ndarray,
        texts: Sequence[Optional[str]],
        images: Sequence[int],
        *,
        timings: Optional[Timings] = None,
        stop: Optional[StopSignal] = None,
    ) -> np.ndarray:
        """The matching head's logits ``[texts, 2]`` of ``texts[i]`` with image ``images[i]``."""
        rows = [self.read_text.tokens(text) for text in texts]
        parts = []
        with stage("text_encoder", len(texts), timings, stop):
            for part in _parts(images, self.images_at_once()):
                embeds = self.embeds_for(image_embeds, [images[i] for i in part])
                asked = [rows[i] for i in part]
                outputs, _ = self.run_texts("text_encoder", asked, image_embeds=embeds)
                parts.append(outputs["itm_logits"])
        return np.concatenate(parts)


def _parts(images: Sequence[int], size: int) -> List[List[int]]:
    """Texts in calls of at most ``size``, in order; an image with several has its own calls."""
    parts: List[List[int]] = []
    previous = 0
    for _, run in groupby(range(len(images)), key=lambda text: images[text]):
        mine = list(run)
        joins = len(mine) == 1 == previous and len(parts[-1]) < size
        previous = len(mine)
        if joins:
            parts[-1] += mine
        else:
            parts += [list(part) for part in chunks(mine, size)]
    return parts


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
