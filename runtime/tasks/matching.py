"""Image-text matching: how well a text fits an image, and rankings."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from ..decoding.batching import StopSignal, Timings, chunks, run_rows, stage
from ..errors import InputError
from ..files.number_formats import softmax
from ..preprocessing.images import ImageSource
from .image_index import ImageIndex, check_made_by, made_by
from .task import Result, Task, check_pairs

#: What a ranking goes by: the matching head's probability, the contrastive cosine, or both as in
#: BLIP's own retrieval, the head's logit for "fits" plus the cosine.
RANKINGS = ("itm", "itc", "sum")


@dataclass(frozen=True)
class Match(Result):
    """How well a text fits an image."""

    #: that the text describes the image, by the matching head, between 0 and 1
    probability: float
    #: of the contrastive features, between -1 and 1
    cosine: float
    #: the matching head's two logits: does not fit, fits
    itm_logits: Tuple[float, float]

    def score(self, by: str = "itm") -> Optional[float]:
        """What a ranking goes by (``RANKINGS``); None where the head did not look at the pair."""
        scores = (self._known, self.cosine, _both(self.itm_logits[1], self.cosine))
        return scores[_ranking(by)]

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
    #: the matching head's logits ``[images, texts, 2]``, NaN where it did not look
    itm_logits: np.ndarray

    def match(self, image: int, text: int) -> Match:
        """One pair's scores."""
        first, second = self.itm_logits[image, text].tolist()
        scores = (float(self.probability[image, text]), float(self.cosine[image, text]))
        return Match(*scores, (first, second))

    def texts_for(self, image: int, by: str = "itm") -> List[int]:
        """Text numbers, best first: by the score (``RANKINGS``) where known, then by cosine."""
        return _order(self._scores(by)[image], self.cosine[image])

    def images_for(self, text: int, by: str = "itm") -> List[int]:
        """Image numbers, best first: by the score (``RANKINGS``) where known, then by cosine."""
        return _order(self._scores(by)[:, text], self.cosine[:, text])

    def _scores(self, by: str) -> np.ndarray:
        both = self.itm_logits[:, :, 1] + self.cosine
        return (self.probability, self.cosine, both)[_ranking(by)]


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
        itm_logits = np.full((*cosine.shape, 2), np.nan, dtype=np.float32)
        rows, columns = np.nonzero(wanted)
        if len(rows):
            asked = [texts[column] for column in columns.tolist()]
            logits = self.itm_logits(embeds, asked, rows.tolist(), timings=timings, stop=stop)
            itm_logits[rows, columns] = logits
            probability[rows, columns] = softmax(logits)[:, 1]
        return Ranking(cosine=cosine, probability=probability, itm_logits=itm_logits)

    def embed_images(
        self,
        images: Sequence[ImageSource],
        names: Optional[Sequence[str]] = None,
        *,
        timings: Optional[Timings] = None,
        stop: Optional[StopSignal] = None,
    ) -> ImageIndex:
        """Contrastive features of images, to be saved and searched.

        Args:
            images: paths, or other images with ``names``.
            names: what a search calls each image; None: its path.
            timings: collects the time of each stage.
            stop: ends the work at its next stage.

        Raises:
            InputError: an image that cannot be used, or no name for it.
        """
        if names is None and not all(isinstance(image, (str, Path)) for image in images):
            raise InputError("embed_images: name images that are no paths (names=)")
        called = tuple(str(name) for name in (images if names is None else names))
        if len(called) != len(images) or not called:
            raise InputError(f"embed_images: {len(called)} names for {len(images)} images")
        parts = [
            self.image_features(self.encode(part, timings=timings, stop=stop), timings=timings)
            for part in chunks(images, self.images_at_once())
        ]
        return ImageIndex(called, np.concatenate(parts), made_by(self.artifacts))

    def search(
        self,
        index: Union[ImageIndex, str, Path],
        texts: Sequence[str],
        *,
        top_k: Optional[int] = None,
        same_artifacts: bool = True,
        timings: Optional[Timings] = None,
    ) -> List[List[Tuple[str, float]]]:
        """For each text the names and cosines of the images that fit it best, best first.

        Args:
            index: from ``embed_images``, or the file that it was saved to.
            texts: the texts.
            top_k: so many images per text; None: all.
            same_artifacts: refuse features that other artifacts of the same checkpoint made.
            timings: collects the time of each stage.

        Raises:
            InputError: a text or file that cannot be used, or features of other artifacts.
        """
        if not isinstance(index, ImageIndex):
            index = ImageIndex.load(index)
        features = self.text_features(texts, timings=timings)
        check_made_by(index, self.artifacts, features.shape[1], strict=same_artifacts)
        found = index.best(features, top_k)
        return [[(index.names[image], cosine) for image, cosine in mine] for mine in found]

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


def _ranking(by: str) -> int:
    if by not in RANKINGS:
        raise InputError(f"by {by!r}: choose from {', '.join(RANKINGS)}")
    return RANKINGS.index(by)


def _both(logit: float, cosine: float) -> Optional[float]:
    return None if np.isnan(logit) else logit + cosine


def _order(score: np.ndarray, cosine: np.ndarray) -> List[int]:
    known = np.nan_to_num(score, nan=-np.inf)
    order: List[int] = np.lexsort((-cosine, -known)).tolist()
    return order
