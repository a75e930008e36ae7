"""Visual question answering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np

from ..decoding.batching import as_numpy, chunk_rows, chunks, ragged, run_rows
from ..decoding.cross_attention import project
from ..errors import InputError
from ..generation.generate import OnToken, generate
from ..generation.search import Sequence as TokenSequence
from ..generation.settings import GenerationSettings
from ..preprocessing.images import ImageSource
from .task import Task, like_input, padded_sequences
from .texts import padded_texts
from .timing import Timings


@dataclass(frozen=True)
class Answer:
    """One answer: text, token ids, and what else the search found."""

    text: str
    token_ids: Tuple[int, ...]
    #: length-normalised log-probability (beam search), or None
    score: Optional[float] = None
    #: the other sequences asked for with ``num_return_sequences``, best first
    alternatives: Tuple["Answer", ...] = ()


class QuestionAnswerer(Task):
    """Answers questions about images; an image is encoded once, however many questions it gets."""

    task = "vqa"

    def __call__(self, image: ImageSource, question: str, **generation: Any) -> Answer:
        """Answers one question about one image; see ``batch``."""
        return self.batch([image], [[question]], **generation)[0][0]

    def ask(self, image: ImageSource, questions: Sequence[str], **generation: Any) -> List[Answer]:
        """Answers several questions about one image; see ``batch``."""
        return self.batch([image], [questions], **generation)[0]

    def encode(
        self, images: Sequence[ImageSource], *, timings: Optional[Timings] = None
    ) -> np.ndarray:
        """Image states ``[images, image tokens, hidden]`` for ``answer``."""
        timings = timings or Timings()
        states = []
        for part in chunks(images, self.images_at_once()):
            with timings.measure("preprocess", len(part)):
                pixel_values = self.preprocessor(part)
            with timings.measure("vision", len(part)):
                states.append(self._image_embeds(pixel_values))
        return np.concatenate(states)

    def answer(
        self,
        image_embeds: np.ndarray,
        questions: Sequence[str],
        images: Optional[Sequence[int]] = None,
        *,
        on_token: Optional[OnToken] = None,
        timings: Optional[Timings] = None,
        **generation: Any,
    ) -> List[Answer]:
        """Answers questions about encoded images.

        Args:
            image_embeds: from ``encode``.
            questions: the questions.
            images: which image each question is about; None: all about the first.
            on_token: called with question number and token id as each token is found.
            timings: collects the time of each stage.
            **generation: as in ``GenerationSettings``.

        Raises:
            InputError: a question or argument that cannot be used.
        """
        settings = GenerationSettings.from_arguments(**generation)
        ids = [self.tokenizer.question(question) for question in questions]
        which = [0] * len(ids) if images is None else list(images)
        found = self._answer(image_embeds, which, ids, settings, on_token, timings or Timings())
        return [self._result(sequences) for sequences in found]

    def batch(
        self,
        images: Sequence[ImageSource],
        questions: Sequence[Sequence[str]],
        *,
        timings: Optional[Timings] = None,
        **generation: Any,
    ) -> List[List[Answer]]:
        """Answers ``questions[i]`` about ``images[i]``, stage by stage, in bounded memory.

        Raises:
            InputError: an image, a question or an argument that cannot be used.
        """
        if len(questions) != len(images) or any(isinstance(asked, str) for asked in questions):
            raise InputError(f"questions: pass one list of questions per image ({len(images)})")
        answers: List[List[Answer]] = []
        for part in chunks(range(len(images)), self.images_at_once()):
            embeds = self.encode([images[index] for index in part], timings=timings)
            asked = [(row, text) for row, index in enumerate(part) for text in questions[index]]
            flat = self.answer(
                embeds,
                [text for _, text in asked],
                [row for row, _ in asked],
                timings=timings,
                **generation,
            )
            rest = iter(flat)
            answers += [[next(rest) for _ in questions[index]] for index in part]
        return answers

    def generate_answer(
        self,
        pixel_values: Any,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        timings: Optional[Timings] = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Token ids ``[batch x num_return_sequences, tokens]``, as HuggingFace returns them.

        Args:
            pixel_values: ``[batch, 3, height, width]``.
            input_ids: questions ``[batch, tokens]`` as the processor makes them.
            attention_mask: 1 for tokens, 0 for padding. The decoder never attends to padding,
                so a row's answer equals that of the row alone.
            timings: collects the time of each stage.
            **generate_kwargs: as in ``GenerationSettings``.

        Returns:
            a numpy array, or a torch tensor if ``pixel_values`` is one.
        """
        timings = timings or Timings()
        settings = GenerationSettings.from_arguments(**generate_kwargs)
        pixels = as_numpy(pixel_values).astype(np.float32, copy=False)
        mask = None if attention_mask is None else as_numpy(attention_mask)
        ids = ragged(as_numpy(input_ids), mask, self.manifest.text.pad_token_id)
        if len(ids) != len(pixels):
            raise InputError(f"input_ids: {len(ids)} rows for {len(pixels)} images")
        found: List[List[TokenSequence]] = []
        for part in chunks(range(len(pixels)), self.images_at_once()):
            picked = slice(part[0], part[-1] + 1)
            with timings.measure("vision", len(part)):
                embeds = self._image_embeds(pixels[picked])
            rows = list(range(len(part)))
            found += self._answer(embeds, rows, ids[picked], settings, None, timings)
        return like_input(padded_sequences(found, self.manifest.text, settings), pixel_values)

    def _image_embeds(self, pixel_values: np.ndarray) -> np.ndarray:
        feeds = {"pixel_values": pixel_values}
        return run_rows(self.session("vision_encoder"), feeds)["image_embeds"]

    def _answer(
        self,
        image_embeds: np.ndarray,
        images: List[int],
        questions: List[List[int]],
        settings: GenerationSettings,
        on_token: Optional[OnToken],
        timings: Timings,
    ) -> List[List[TokenSequence]]:
        found: List[List[TokenSequence]] = []
        for part in chunks(range(len(questions)), self._questions_at_once()):
            ids, mask = padded_texts(
                self.session("text_encoder"), [questions[i] for i in part], self.manifest.text
            )
            feeds = {
                "input_ids": ids,
                "attention_mask": mask,
                "image_embeds": image_embeds[[images[i] for i in part]],
            }
            with timings.measure("text_encoder", len(part)):
                hidden = run_rows(self.session("text_encoder"), feeds)["last_hidden_state"]
            with timings.measure("cross_key_values", len(part)):
                cross = project(self.session("cross_key_values"), hidden, mask)
            streamed = None if on_token is None else _shifted(on_token, part[0])
            found += generate(
                self.session("text_decoder"),
                self.manifest,
                cross,
                [[self.manifest.text.start_token_id]] * len(part),
                settings,
                on_token=streamed,
                timings=timings,
            )
        return found

    def _result(self, sequences: List[TokenSequence]) -> Answer:
        found = [
            Answer(
                text=self.tokenizer.decode([int(i) for i in sequence.token_ids]),
                token_ids=tuple(int(i) for i in sequence.token_ids),
                score=sequence.score,
            )
            for sequence in sequences
        ]
        best = found[0]
        return Answer(best.text, best.token_ids, best.score, tuple(found[1:]))

    def images_at_once(self) -> int:
        """See ``Task``."""
        size, image = self.manifest.dimensions, self.manifest.image
        floats = 3 * image.height * image.width + 2 * size.image_tokens * size.vision_hidden_size
        return chunk_rows(self.session("vision_encoder"), 4 * floats)

    def _questions_at_once(self) -> int:
        size, tokens = self.manifest.dimensions, self.manifest.shapes.text_tokens
        cross = size.layers * 2 * tokens * size.heads * size.head_size
        floats = cross + size.image_tokens * size.vision_hidden_size
        return chunk_rows(self.session("text_encoder"), 4 * floats)


def _shifted(on_token: OnToken, first: int) -> OnToken:
    return lambda row, token: on_token(first + row, token)
