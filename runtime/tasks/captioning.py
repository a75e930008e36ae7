"""Image captioning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from ..decoding.batching import as_numpy, chunk_rows, chunks, ragged
from ..decoding.cross_attention import look
from ..errors import InputError
from ..generation.generate import OnToken, generate
from ..generation.search import Sequence as TokenSequence
from ..generation.settings import GenerationSettings
from ..preprocessing.images import ImageSource, PreparedImage
from .task import Task, like_input, padded_sequences
from .timing import Timings

Prompts = Union[None, str, Sequence[Optional[str]]]


@dataclass(frozen=True)
class Caption:
    """One caption: text (prompt included), token ids, and what else the search found."""

    text: str
    token_ids: Tuple[int, ...]
    #: length-normalised log-probability (beam search), or None
    score: Optional[float] = None
    #: the other sequences asked for with ``num_return_sequences``, best first
    alternatives: Tuple["Caption", ...] = ()


class Captioner(Task):
    """Describes images, freely or going on from a prompt."""

    task = "caption"

    def __call__(
        self, image: ImageSource, prompt: Optional[str] = None, **generation: Any
    ) -> Caption:
        """Captions one image; see ``batch``."""
        return self.batch([image], prompt, **generation)[0]

    def batch(
        self,
        images: Sequence[ImageSource],
        prompts: Prompts = None,
        *,
        on_token: Optional[OnToken] = None,
        timings: Optional[Timings] = None,
        **generation: Any,
    ) -> List[Caption]:
        """Captions images, stage by stage, in bounded memory.

        Args:
            images: paths, encoded bytes, Pillow images or uint8 arrays.
            prompts: one for all, or one per image; None or "" for a free caption.
            on_token: called with image number and token id as each token is found.
            timings: collects the time of each stage.
            **generation: as in ``GenerationSettings``.

        Raises:
            InputError: an image or argument that cannot be used.
        """
        timings = timings or Timings()
        settings = GenerationSettings.from_arguments(**generation)
        texts = _one_each(prompts, len(images))
        if len(texts) != len(images):
            raise InputError(f"prompts: {len(texts)} for {len(images)} images; pass one per image")
        ids = [self.tokenizer.prompt(text) for text in texts]
        captions: List[Caption] = []
        for part in chunks(range(len(images)), self.images_at_once()):
            with timings.measure("preprocess", len(part)):
                pixel_values = self.preprocessor([images[index] for index in part])
            found = self._generate(
                pixel_values,
                [ids[index] for index in part],
                settings,
                None if on_token is None else _shifted(on_token, part[0]),
                timings,
            )
            captions += [self._caption(sequences) for sequences in found]
        return captions

    def stream(
        self,
        images: Iterable[ImageSource],
        prompt: Optional[str] = None,
        *,
        timings: Optional[Timings] = None,
        **generation: Any,
    ) -> Iterator[Tuple[ImageSource, Union[Caption, InputError]]]:
        """Captions any number of images in order, in bounded memory, with the device kept busy.

        Args:
            images: as in ``batch``; may be endless.
            prompt: for all images; None or "" for free captions.
            timings: collects the time of each stage.
            **generation: as in ``GenerationSettings``.

        Yields:
            every image with its caption, or with what is wrong with it.

        Raises:
            InputError: an argument that cannot be used.
        """
        GenerationSettings.from_arguments(**generation)

        def work(
            group: List[Tuple[ImageSource, PreparedImage]], measured: Timings
        ) -> List[Caption]:
            prepared = [image for _, image in group]
            return self.batch(prepared, prompt, timings=measured, **generation)

        return self.stream_batches(images, lambda image: image, work, timings or Timings())

    def generate_caption(
        self,
        pixel_values: Any,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        timings: Optional[Timings] = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Token ids ``[batch x num_return_sequences, tokens]``, as HuggingFace returns them.

        Args:
            pixel_values: ``[batch, 3, height, width]``.
            input_ids: prompts ``[batch, tokens]`` as the processor makes them; None for none.
            attention_mask: 1 for tokens, 0 for padding. Padding on either side is left out,
                so a row's answer equals that of the row alone.
            timings: collects the time of each stage.
            **generate_kwargs: as in ``GenerationSettings``.

        Returns:
            a numpy array, or a torch tensor if ``pixel_values`` is one.
        """
        pixels = as_numpy(pixel_values).astype(np.float32, copy=False)
        text, rows = self.manifest.text, len(pixels)
        prompts = [[text.start_token_id] for _ in range(rows)]
        if input_ids is not None:
            mask = None if attention_mask is None else as_numpy(attention_mask)
            real = ragged(as_numpy(input_ids), mask, text.pad_token_id)
            prompts = [[text.start_token_id, *row[1:-1]] for row in real]
        if len(prompts) != rows:
            raise InputError(
                f"input_ids: {len(prompts)} rows for {rows} images; pass one per image"
            )
        settings = GenerationSettings.from_arguments(**generate_kwargs)
        found: List[List[TokenSequence]] = []
        for part in chunks(range(rows), self.images_at_once()):
            picked = slice(part[0], part[-1] + 1)
            found += self._generate(
                pixels[picked], prompts[picked], settings, None, timings or Timings()
            )
        return like_input(padded_sequences(found, self.manifest.text, settings), pixel_values)

    def _generate(
        self,
        pixel_values: np.ndarray,
        prompts: List[List[int]],
        settings: GenerationSettings,
        on_token: Optional[OnToken],
        timings: Timings,
    ) -> List[List[TokenSequence]]:
        cross = look(
            self.session("vision_encoder"), self.session("cross_key_values"), pixel_values, timings
        )
        return generate(
            self.session("text_decoder"),
            self.manifest,
            cross,
            prompts,
            settings,
            on_token=on_token,
            timings=timings,
        )

    def _caption(self, sequences: List[TokenSequence]) -> Caption:
        found = [
            Caption(
                text=self.tokenizer.decode([int(i) for i in sequence.token_ids]),
                token_ids=tuple(int(i) for i in sequence.token_ids),
                score=sequence.score,
            )
            for sequence in sequences
        ]
        best = found[0]
        return Caption(best.text, best.token_ids, best.score, tuple(found[1:]))

    def images_at_once(self) -> int:
        """See ``Task``."""
        size, image = self.manifest.dimensions, self.manifest.image
        states = size.image_tokens * size.vision_hidden_size
        cross = size.layers * 2 * size.image_tokens * size.heads * size.head_size
        floats = 3 * image.height * image.width + states + cross
        return chunk_rows(self.session("vision_encoder"), 4 * floats)


def _one_each(prompts: Prompts, images: int) -> List[Optional[str]]:
    if prompts is None or isinstance(prompts, str):
        return [prompts] * images
    return list(prompts)


def _shifted(on_token: OnToken, first: int) -> OnToken:
    return lambda row, token: on_token(first + row, token)
