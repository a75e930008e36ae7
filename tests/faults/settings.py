"""Defects beside right graphs: manifest values, processor files, tokenizer, the runtime itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from pipeline.manifest import file_record

Data = dict[str, Any]


def manifest(section: str, key: str, value: Any) -> Callable[[Path], None]:
    """Changes one value of the task manifest."""

    def plant(folder: Path) -> None:
        path = folder / "manifest.json"
        data = json.loads(path.read_text())
        assert data[section][key] != value
        data[section][key] = value
        path.write_text(json.dumps(data))

    return plant


def processor(name: str, change: Callable[[Data], None]) -> Callable[[Path], None]:
    """Changes a processor file and re-seals the task manifest."""

    def plant(folder: Path) -> None:
        path = folder / "processor" / name
        data = json.loads(path.read_text())
        before = json.dumps(data)
        change(data)
        assert json.dumps(data) != before
        path.write_text(json.dumps(data))
        sealed = json.loads((folder / "manifest.json").read_text())
        sealed["files"][f"processor/{name}"] = file_record(path).model_dump()
        (folder / "manifest.json").write_text(json.dumps(sealed))

    return plant


def _cased(data: Data) -> None:
    data["normalizer"]["lowercase"] = False


def _no_class_token(data: Data) -> None:
    post = data["post_processor"]
    if post["type"] == "BertProcessing":
        data["post_processor"] = None
        return
    post["single"] = [
        p for p in post["single"] if "SpecialToken" not in p or p["SpecialToken"]["id"] != "[CLS]"
    ]


def _two_words_swapped(data: Data) -> None:
    vocabulary = data["model"]["vocab"]
    first, second = sorted(w for w in vocabulary if w.isalpha() and len(w) > 2)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def _bilinear(data: Data) -> None:
    data["resample"] = 2


def _setting(name: str, task: str, plant: Callable[[Path], None], named: str) -> dict[str, Any]:
    return {"name": name, "task": task, "plant": plant, "named": named}


SETTING_FAULTS: list[dict[str, Any]] = [
    _setting(
        "wrong end token",
        "caption",
        manifest("text", "end_token_id", 7),
        r"generation: .*end_token",
    ),
    _setting(
        "start token is [CLS]",
        "caption",
        manifest("text", "start_token_id", 2),
        r"generation: .*start_token",
    ),
    _setting(
        "wrong pad id", "vqa", manifest("text", "pad_token_id", 5), r"tokenization: .*pad_token"
    ),
    _setting(
        "question starts with [ENC]",
        "vqa",
        manifest("text", "question_start", "enc"),
        r"tokenization: .*question_start",
    ),
    _setting(
        "mean missing",
        "caption",
        manifest("image", "mean", [0.0, 0.0, 0.0]),
        r"preprocessing: .*mean",
    ),
    _setting(
        "std missing", "itm", manifest("image", "std", [1.0, 1.0, 1.0]), r"preprocessing: .*std"
    ),
    _setting(
        "mean and std of ImageNet",
        "vqa",
        manifest("image", "mean", [0.485, 0.456, 0.406]),
        r"preprocessing: .*mean",
    ),
    _setting(
        "bilinear instead of bicubic",
        "caption",
        manifest("image", "resample", "bilinear"),
        r"preprocessing: .*resample",
    ),
    _setting(
        "pixels over 256",
        "caption",
        manifest("image", "rescale_factor", 1 / 256),
        r"preprocessing: .*rescale",
    ),
    _setting(
        "position table too short",
        "vqa",
        manifest("text", "maximum_positions", 24),
        r"tokenization: .*maximum_positions",
    ),
    _setting(
        "tokenizer keeps capitals",
        "vqa",
        processor("tokenizer.json", _cased),
        r"tokenization: lower-casing",
    ),
    _setting(
        "tokenizer adds no [CLS]",
        "itm",
        processor("tokenizer.json", _no_class_token),
        r"tokenization: ",
    ),
    _setting(
        "two words of the vocabulary swapped",
        "caption",
        processor("tokenizer.json", _two_words_swapped),
        r"tokenization: ",
    ),
    _setting(
        "processor file says bilinear",
        "caption",
        processor("preprocessor_config.json", _bilinear),
        r"preprocessing: .*resample",
    ),
]


@contextmanager
def _bgr() -> Iterator[None]:
    from runtime.preprocessing.processor import ImagePreprocessor

    right = ImagePreprocessor.resized

    def wrong(self: Any, image: Any) -> Any:
        from PIL import Image

        return Image.fromarray(np.asarray(right(self, image))[..., ::-1].copy())

    with patch.object(ImagePreprocessor, "resized", wrong):
        yield


@contextmanager
def _mirrored() -> Iterator[None]:
    from runtime.preprocessing.processor import ImagePreprocessor

    right = ImagePreprocessor.__call__
    with patch.object(ImagePreprocessor, "__call__", lambda s, i: right(s, i)[..., ::-1]):
        yield


@contextmanager
def _weak_mask() -> Iterator[None]:
    with patch("runtime.decoding.batching.MASKED", np.float32(-1.0)):
        yield


@contextmanager
def _position_off() -> Iterator[None]:
    from runtime.decoding.decoder_run import GrowingRun

    right = GrowingRun._call

    def wrong(self: Any, ids: Any, positions: Any, allowed: Any) -> Any:
        return right(self, ids, positions + 1, allowed)

    with patch.object(GrowingRun, "_call", wrong):
        yield


@contextmanager
def _fixed_position_off() -> Iterator[None]:
    import runtime.decoding.decoder_run as decoding

    right = decoding.fixed_call

    def wrong(tokens: Any, length: int, past: int, slots: int) -> Any:
        feeds = right(tokens, length, past, slots)
        return {**feeds, "position_ids": np.maximum(feeds["position_ids"] - 1, 0)}

    with patch("runtime.decoding.decoder_run.fixed_call", wrong):
        yield


@contextmanager
def _stale_row() -> Iterator[None]:
    from runtime.decoding.caches import GrowingCache

    right = GrowingCache.append

    def wrong(self: Any, outputs: Any) -> None:
        first = self.length
        right(self, outputs)
        if first > 2:
            for buffer in self._buffers:
                buffer[:, first] = buffer[:, first - 1]

    with patch.object(GrowingCache, "append", wrong):
        yield


@contextmanager
def _no_prompt() -> Iterator[None]:
    from runtime.preprocessing.processor import TextTokenizer

    with patch.object(TextTokenizer, "prompt", lambda s, _t: [s.settings.start_token_id]):
        yield


@contextmanager
def _pads_attended() -> Iterator[None]:
    import runtime.decoding.batching as texts

    right = texts.text_rows

    def wrong(rows: Sequence[Sequence[int]], length: int, pad: int) -> Any:
        ids, mask = right(rows, length, pad)
        return ids, np.ones_like(mask)

    with patch("runtime.decoding.batching.text_rows", wrong):
        yield


@contextmanager
def _question_pads_attended() -> Iterator[None]:
    import runtime.decoding.decoder_run as decoding

    right = decoding.cross_mask

    def wrong(cross: Any, tokens: int) -> Any:
        return right(cross, tokens) * 0

    with patch("runtime.decoding.decoder_run.cross_mask", wrong):
        yield


@contextmanager
def _never_ends() -> Iterator[None]:
    import runtime.generation.generate as generation

    right = generation.Limits

    def wrong(longest: int, shortest: int, end_token_id: int) -> Any:
        return right(longest=longest, shortest=shortest, end_token_id=end_token_id + 1)

    with patch("runtime.generation.generate.Limits", wrong):
        yield


@contextmanager
def _wrong_logit() -> Iterator[None]:
    import runtime.tasks.matching as matching

    right = matching.softmax
    with patch("runtime.tasks.matching.softmax", lambda logits: right(logits)[:, ::-1]):
        yield


@contextmanager
def _keeps_last_separator() -> Iterator[None]:
    from runtime.preprocessing.processor import TextTokenizer

    def wrong(self: Any, text: Any) -> list[int]:
        start = [self.settings.start_token_id]
        return [*start, *self.encode(text)[1:]] if text else start

    with patch.object(TextTokenizer, "prompt", wrong):
        yield


def _runtime(name: str, task: str, active: Any, named: str) -> dict[str, Any]:
    return {"name": name, "task": task, "active": active, "named": named}


RUNTIME_FAULTS: list[dict[str, Any]] = [
    _runtime("BGR instead of RGB", "caption", _bgr, r"preprocessing: channel order reversed"),
    _runtime("image mirrored", "itm", _mirrored, r"preprocessing: image mirrored"),
    _runtime("mask of -1", "caption", _weak_mask, r"host: text_decoder self_attention_mask"),
    _runtime("position off by one", "caption", _position_off, r"host: text_decoder position_ids"),
    _runtime(
        "position off by one on chips",
        "vqa",
        _fixed_position_off,
        r"host: text_decoder position_ids",
    ),
    _runtime("stale cache row", "caption", _stale_row, r"host: text_decoder cache"),
    _runtime("prompt missing", "caption", _no_prompt, r"tokenization: prompt"),
    _runtime("prompt keeps its [SEP]", "caption", _keeps_last_separator, r"tokenization: prompt"),
    _runtime("padding attended", "itm", _pads_attended, r"host: text_encoder\S* attention_mask"),
    _runtime(
        "question's padding attended",
        "vqa",
        _question_pads_attended,
        r"host: text_decoder cross_attention_mask",
    ),
    _runtime("end token ignored", "caption", _never_ends, r"generation: end token"),
    _runtime(
        "probability of the wrong logit", "itm", _wrong_logit, r"(host|generation): match prob"
    ),
]
