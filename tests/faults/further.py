"""Further defects of graphs, IRs, files and the runtime, apart from the first suite's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from onnx import numpy_helper

from tests.faults import graph_changes as graphs
from tests.faults import irs
from tests.faults.entries import graph_fault, ir_fault, other_fault
from tests.faults.settings import manifest, processor

_VISION, _DECODER, _TEXT = "vision_encoder", "text_decoder", "text_encoder"


def copied(first: str, second: str) -> graphs.Change:
    """One layer gets another one's weights."""

    def apply(model: graphs.Model) -> None:
        for tensor in model.graph.initializer:
            if tensor.name.startswith(f"{first}."):
                other = graphs.initializer(model, tensor.name.replace(first, second, 1))
                array = numpy_helper.to_array(other).copy()
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return apply


def bfloat16(array: np.ndarray) -> np.ndarray:
    return irs.truncated(array)


def _flags(**values: Any) -> Any:
    def change(data: dict[str, Any]) -> None:
        data.update(values)

    return change


def _accents(data: dict[str, Any]) -> None:
    data["normalizer"]["strip_accents"] = False


@contextmanager
def _rescaled_twice() -> Iterator[None]:
    from runtime.preprocessing.processor import ImagePreprocessor

    right = ImagePreprocessor.__init__

    def wrong(self: Any, settings: Any) -> None:
        right(self, settings)
        levels = np.arange(256, dtype=np.float32) / np.float32(255 * 255)
        mean, std = (np.array(v, dtype=np.float32)[:, None] for v in (settings.mean, settings.std))
        self._levels = (levels[None, :] - mean) / std

    with patch.object(ImagePreprocessor, "__init__", wrong):
        yield


@contextmanager
def _thumbnail() -> Iterator[None]:
    """Keeps the aspect ratio and pads, where the checkpoint stretches."""
    from PIL import Image, ImageOps

    from runtime.preprocessing.processor import ImagePreprocessor

    def wrong(self: Any, image: Any) -> Any:
        size = (self.settings.width, self.settings.height)
        return ImageOps.pad(image, size, method=Image.Resampling.BICUBIC)

    with patch.object(ImagePreprocessor, "resized", wrong):
        yield


@contextmanager
def _question_cut() -> Iterator[None]:
    from runtime.preprocessing.processor import TextTokenizer

    right = TextTokenizer.question
    with patch.object(TextTokenizer, "question", lambda self, text: right(self, text)[:5]):
        yield


@contextmanager
def _beams_not_moved() -> Iterator[None]:
    """Rows of a cache stay where they are when beams change places."""
    from runtime.decoding.caches import FixedCache, GrowingCache

    growing, fixed = GrowingCache.select, FixedCache.select

    def of_growing(self: Any, rows: np.ndarray) -> None:
        growing(self, np.arange(len(rows)) if len(rows) == self.rows else rows)

    def of_fixed(self: Any, rows: np.ndarray) -> None:
        fixed(self, np.arange(len(rows)) if len(rows) == len(self.lengths) else rows)

    with (
        patch.object(GrowingCache, "select", of_growing),
        patch.object(FixedCache, "select", of_fixed),
    ):
        yield


@contextmanager
def _penalty_lost() -> Iterator[None]:
    with patch("runtime.generation.settings.penalise_repetition", lambda *_: None):
        yield


@contextmanager
def _long_answers() -> Iterator[None]:
    import runtime.generation.generate as generation

    right = generation.Limits

    def wrong(longest: int, shortest: int, end_token_id: int) -> Any:
        last = max(shortest, longest - 1)
        return right(longest=longest, shortest=last, end_token_id=end_token_id)

    with patch("runtime.generation.generate.Limits", wrong):
        yield


@contextmanager
def _cosine_scaled() -> Iterator[None]:
    """The contrastive score is divided by a temperature."""
    from dataclasses import replace

    from runtime.tasks.matching import Matcher

    right = Matcher._matches

    def wrong(self: Any, *given: Any, **named: Any) -> Any:
        found = right(self, *given, **named)
        return [replace(match, cosine=match.cosine / 0.5) for match in found]

    with patch.object(Matcher, "_matches", wrong):
        yield


@contextmanager
def _raw_words() -> Iterator[None]:
    """Decoded text keeps the marks of word pieces and special tokens."""
    from runtime.preprocessing.processor import TextTokenizer

    def wrong(self: Any, ids: Any) -> str:
        return " ".join(self._tokenizer.id_to_token(int(i)) or "" for i in ids)

    with patch.object(TextTokenizer, "decode", wrong):
        yield


def _settings(section: str, key: str, value: Any) -> dict[str, Any]:
    return {"plant": manifest(section, key, value)}


def _processor(file: str, change: Any) -> dict[str, Any]:
    return {"plant": processor(file, change)}


_PIXELS, _WORDS = "preprocessor_config.json", "tokenizer.json"

FURTHER_FAULTS: list[dict[str, Any]] = [
    graph_fault(
        "last layer dropped",
        "caption",
        _VISION,
        graphs.reads("/norm/LayerNormalization", 0, "/layers.2/Add_1_output_0"),
        r"(norm|layers\.3)",
    ),
    graph_fault(
        "weights of another layer",
        "vqa",
        _VISION,
        copied("layers.1", "layers.2"),
        r"layers\.1",
    ),
    graph_fault(
        "last norm missing",
        "itm",
        _VISION,
        graphs.bypass("/norm/LayerNormalization", 0),
        r"norm",
    ),
    graph_fault(
        "no scale in one layer",
        "vqa",
        _VISION,
        graphs.constant("/layers.2/attention/Mul", lambda a: a * 0 + 1),
        r"layers\.2\.attention",
    ),
    graph_fault(
        "cross-attention reads its own keys",
        "caption",
        _DECODER,
        graphs.reads("/layers.1/cross_attention/Transpose_2", 0, "cross.0.key"),
        r"layers\.1\.cross_attention",
    ),
    graph_fault(
        "one layer rounded to bf16",
        "itm",
        _TEXT,
        graphs.weight("layers.0.attention.key.weight", bfloat16),
        r"layers\.0\.attention\.key",
    ),
    graph_fault(
        "key bias zeroed",
        "caption",
        _VISION,
        graphs.weight("layers.0.attention.key.bias", lambda a: a * 0),
        r"layers\.0\.attention\.key",
    ),
    graph_fault(
        "one logit's bias off",
        "caption",
        _DECODER,
        graphs.weight("head.bias", lambda a: a + 0.5 * (np.arange(a.size) == 90)),
        r"head",
    ),
    graph_fault(
        "matching bias flipped",
        "itm",
        _TEXT,
        graphs.weight("head.bias", lambda a: a[::-1]),
        r"head",
    ),
    ir_fault(
        "last norm's weights off",
        "vqa",
        _VISION,
        irs.weight("norm.weight", lambda a: a * 1.002),
        r"norm",
    ),
    ir_fault(
        "query bias zeroed",
        "caption",
        _DECODER,
        irs.weight("layers.1.attention.query.bias", lambda a: a * 0),
        r"layers\.1\.attention\.query",
    ),
    ir_fault(
        "no scale in one layer",
        "itm",
        _TEXT,
        irs.scalar("/layers.1/attention/Mul", lambda _: 1.0),
        r"layers\.1\.attention",
    ),
    ir_fault(
        "text positions off by one",
        "vqa",
        _TEXT,
        irs.weight("embeddings.positions", graphs.row_off),
        r"embeddings",
    ),
    ir_fault(
        "two rows of the vocabulary swapped",
        "caption",
        _DECODER,
        irs.weight("embeddings.tokens", lambda a: a[[*range(150), 151, 150, *range(152, len(a))]]),
        r"(embeddings\.tokens|embeddings|head)",
    ),
    ir_fault(
        "patch weights expect BGR",
        "itm",
        _VISION,
        irs.weight("patches.weight", lambda a: a[:, ::-1]),
        r"patches",
    ),
    ir_fault(
        "cross-attention skipped",
        "caption",
        _DECODER,
        irs.dropped("/layers.0/cross_attention/Add", 1),
        r"layers\.0\.cross_attention",
    ),
    other_fault("image height off", "vqa", r"preprocessing: ", **_settings("image", "height", 80)),
    other_fault(
        "wrong [ENC]", "itm", r"tokenization: .*enc_token", **_settings("text", "enc_token_id", 197)
    ),
    other_fault(
        "text is lower case: no",
        "caption",
        r"tokenization: ",
        **_settings("text", "lower_case", False),
    ),
    other_fault(
        "processor rescales by 1/127.5",
        "caption",
        r"preprocessing: .*rescale",
        **_processor(_PIXELS, _flags(rescale_factor=1 / 127.5)),
    ),
    other_fault(
        "processor does not normalise",
        "vqa",
        r"preprocessing: .*normalize",
        **_processor(_PIXELS, _flags(do_normalize=False)),
    ),
    other_fault(
        "tokenizer keeps accents", "vqa", r"tokenization: ", **_processor(_WORDS, _accents)
    ),
    other_fault("rescaled twice", "caption", r"preprocessing: ", active=_rescaled_twice),
    other_fault("image padded, not stretched", "vqa", r"preprocessing: ", active=_thumbnail),
    other_fault("question cut after five tokens", "vqa", r"tokenization: ", active=_question_cut),
    other_fault(
        "beams do not move their rows", "caption", r"generation: beam", active=_beams_not_moved
    ),
    other_fault("repetition penalty ignored", "vqa", r"generation: scores", active=_penalty_lost),
    other_fault("answers as long as allowed", "caption", r"generation: ", active=_long_answers),
    other_fault("contrastive cosine scaled", "itm", r"generation: .*cosine", active=_cosine_scaled),
    other_fault("decoded text keeps its marks", "caption", r"tokenization: ", active=_raw_words),
]
