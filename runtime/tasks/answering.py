"""Answers to questions about images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional, Sequence, overload

import numpy as np

from ..decoding.batching import StopSignal, Timings, chunks, stage
from ..errors import InputError
from ..generation.generate import OnToken
from ..generation.generate import Sequence as TokenSequence
from ..generation.settings import GenerationSettings
from ..preprocessing.images import ImageSource
from .generating import Generated, GeneratingTask, Tokens
from .task import check_pairs

if TYPE_CHECKING:
    from ..generation.given import Given


class Answer(Generated):
    """One answer to a question about an image."""


class QuestionAnswerer(GeneratingTask[Answer]):
    """Answers questions about images: ``answerer(image, question)``.

    An image is encoded once, however many questions it gets. ``pairs``, ``batch`` and ``ask`` take
    the arguments of ``settings``; with ``answers``, a list of texts, they choose among those as
    BLIP's own ``rank`` evaluation does: ``answer_candidates`` of them (128), those whose first
    token is most likely, are scored whole, and ``num_return_sequences`` of these come back.
    """

    task = "vqa"
    asks = "question"
    result = Answer

    def batch(
        self, images: Sequence[ImageSource], questions: Sequence[Sequence[str]], **options: Any
    ) -> List[List[Answer]]:
        """Answers ``questions[i]`` about ``images[i]``; see ``pairs``."""
        return self.pairs(images, questions, **options)

    def pairs(
        self,
        images: Sequence[ImageSource],
        texts: Sequence[Sequence[Optional[str]]],
        *,
        timings: Optional[Timings] = None,
        stop: Optional[StopSignal] = None,
        **generation: Any,
    ) -> List[List[Answer]]:
        """See ``Task``; the class describes the further options."""
        from .given_texts import choice

        settings, given = choice(self, **generation)
        check_pairs(images, texts, "questions")
        answers: List[List[Answer]] = []
        start = 0
        for part in chunks(range(len(images)), self.images_at_once()):
            embeds = self.encode([images[i] for i in part], timings=timings, stop=stop)
            asked = [(row, text) for row, index in enumerate(part) for text in texts[index]]
            end = start + len(asked)
            found = self._answer(
                embeds,
                [row for row, _ in asked],
                [self.read_text.tokens(text) for _, text in asked],
                settings,
                None,
                timings,
                stop,
                given and given.part(start, end),
            )
            start, rest = end, iter(found)
            answers += [[self._result(next(rest)) for _ in texts[index]] for index in part]
        return answers

    @overload
    def score(
        self, images: ImageSource, questions: str, answers: str, **options: Any
    ) -> Answer: ...
    @overload
    def score(self, images: Any, questions: Any, answers: Any, **options: Any) -> Any: ...
    def score(self, images: Any, questions: Any, answers: Any, **options: Any) -> Any:
        """How likely given answers are: an ``Answer`` with ``log_probs`` and ``confidence``.

        Images, questions and answers are one each, or lists of as many; the result is one or a
        list. Options are ``timings`` and ``stop``.
        """
        from .given_texts import scored

        return scored(self, images, questions, answers, False, **options)

    def answer(
        self,
        image_embeds: np.ndarray,
        questions: Sequence[Optional[str]],
        images: Optional[Sequence[int]] = None,
        *,
        on_token: Optional[OnToken] = None,
        timings: Optional[Timings] = None,
        stop: Optional[StopSignal] = None,
        **generation: Any,
    ) -> List[Answer]:
        """Answers questions about encoded images.

        Args:
            image_embeds: from ``encode``.
            questions: the questions.
            images: which image each question is about; None: all about the first.
            on_token: called with question number and token id as each token is found.
            timings: collects the time of each stage.
            stop: ends the work at its next stage.
            **generation: as in ``pairs``.

        Raises:
            InputError: a question or argument that cannot be used.
        """
        from .given_texts import choice

        settings, given = choice(self, **generation)
        ids = [self.read_text.tokens(question) for question in questions]
        which = [0] * len(ids) if images is None else list(images)
        found = self._answer(image_embeds, which, ids, settings, on_token, timings, stop, given)
        return [self._result(sequences) for sequences in found]

    generate_answer = GeneratingTask.generate

    def sequences(
        self,
        pixel_values: np.ndarray,
        rows: Tokens,
        settings: GenerationSettings,
        timings: Optional[Timings],
    ) -> List[List[TokenSequence]]:
        """See ``GeneratingTask``."""
        embeds = self.image_embeds(pixel_values, timings, None)
        return self._answer(embeds, range(len(rows)), rows, settings, None, timings, None)

    def _answer(
        self,
        image_embeds: np.ndarray,
        images: Sequence[int],
        questions: Tokens,
        settings: GenerationSettings,
        on_token: Optional[OnToken],
        timings: Optional[Timings],
        stop: Optional[StopSignal],
        given: Optional["Given"] = None,
    ) -> List[List[TokenSequence]]:
        if not all(questions):
            raise InputError("questions: one has no tokens; ask something")
        size, tokens = self.manifest.dimensions, self.manifest.shapes.text_tokens
        cross_floats = size.layers * 2 * tokens * size.heads * size.head_size
        floats = cross_floats + size.image_tokens * size.vision_hidden_size
        found: List[List[TokenSequence]] = []
        most = self.rows_at_once("text_encoder", floats)
        size_at_once = max(1, most // (1 if given is None else given.width))
        for part in chunks(range(len(questions)), size_at_once):
            embeds = self.embeds_for(image_embeds, [images[i] for i in part])
            with stage("text_encoder", len(part), timings, stop):
                outputs, mask = self.run_texts(
                    "text_encoder", [questions[i] for i in part], image_embeds=embeds
                )
            with stage("cross_key_values", len(part), timings, stop):
                states = {"encoder_hidden_states": outputs["last_hidden_state"]}
                cross = self.session("cross_key_values").cross_states(states, mask)
            prompts = [[self.manifest.text.start_token_id]] * len(part)
            found += self._generate(
                cross,
                prompts,
                settings,
                first=part[0],
                given=given,
                on_token=on_token,
                timings=timings,
                stop=stop,
            )
        return found
