"""A third suite: batches, long texts, full caches, searches, image kinds, integers, quantisers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
from onnx import TensorProto, helper

from tests.faults import graph_changes as graphs
from tests.faults import integers, irs
from tests.faults.entries import graph_fault, integer_fault, ir_fault, other_fault
from tests.faults.settings import processor

_VISION, _DECODER, _TEXT = "vision_encoder", "text_decoder", "text_encoder"


def rounded_to_half(name: str) -> graphs.Change:
    """An operator's result passes through half precision, as after a careless cast."""

    def apply(model: graphs.Model) -> None:
        maker = graphs.node(model, name)
        output = maker.output[0]
        maker.output[0] = "planted_wide"
        at = list(model.graph.node).index(maker)
        for step, (source, to, kind) in enumerate(
            [
                ("planted_wide", "planted_half", TensorProto.FLOAT16),
                ("planted_half", output, TensorProto.FLOAT),
            ]
        ):
            cast = helper.make_node("Cast", [source], [to], name=f"{name}/Cast{step}", to=kind)
            model.graph.node.insert(at + 1 + step, cast)

    return apply


def _one_scale(product: str) -> irs.Change:
    """One scale for a whole tensor of weights: that of its loudest channel."""

    def apply(model: Any) -> None:
        found = integers._weights(model, product)
        weights, scale = found[0], next(n for n in found if n.get_data().dtype.kind == "f")
        own = scale.get_data().astype(np.float32)
        largest = own.max()
        limits = np.iinfo(weights.get_data().dtype)
        values = np.rint(weights.get_data() * (own / largest))
        irs.put(weights, np.clip(values, limits.min, limits.max))
        irs.put(scale, np.full_like(own, largest))

    return apply


def _shifted(before: str) -> irs.Change:
    """A zero point that is off by one: all values come out one step too high."""

    def apply(model: Any) -> None:
        for node in model.get_ordered_ops():
            if node.get_type_name() == "FakeQuantize" and before in node.get_friendly_name():
                limits = [node.input(i).get_source_output().get_node() for i in range(1, 5)]
                low, high = (np.array(limit.get_data()) for limit in limits[:2])
                step = (high - low) / (node.get_attributes()["levels"] - 1)
                # Both ranges may share their constants: the result is moved, not the limits.
                readers = list(node.output(0).get_target_inputs())
                made = irs.ops.fake_quantize(
                    node.input_value(0), low, high, low + step, high + step, 256
                )
                names = node.output(0).get_names()
                node.output(0).set_names(set())
                made.output(0).set_names(names)
                made.set_friendly_name(node.get_friendly_name() + "/moved")
                for port in readers:
                    port.replace_source_output(made.output(0))
                return
        raise AssertionError(before)

    return apply


def _first_row(parameter: str) -> irs.Change:
    """All rows of a batch get the first one's input."""

    def apply(model: Any) -> None:
        port = next(p for p in model.inputs if parameter in p.get_names())
        readers = list(port.get_target_inputs())
        axis, row = np.int64(0), np.array([0], dtype=np.int64)
        made = irs.ops.gather(port, irs.ops.constant(row), irs.ops.constant(axis))
        for reader in readers:
            reader.replace_source_output(made.output(0))

    return apply


@contextmanager
def _patched(target: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    with patch.object(target, name, make(getattr(target, name))):
        yield


def _in(module: str, owner: str, name: str, make: Callable[[Any], Any]) -> Callable[[], Any]:
    """A patch of ``module.owner.name``, entered when the fault is active."""

    def active() -> Any:
        from importlib import import_module

        return _patched(getattr(import_module(module), owner), name, make)

    return active


def _without(**dropped: Any) -> Callable[[Any], Any]:
    """``BeamSearch`` or rules that are built without one of their settings."""

    def make(right: Any) -> Any:
        def wrong(self: Any, *given: Any) -> None:
            changed = [
                replace(item, **{k: v for k, v in dropped.items() if hasattr(item, k)})
                if hasattr(item, next(iter(dropped)))
                else item
                for item in given
            ]
            right(self, *changed)

        return wrong

    return make


def _last_row_lost(right: Any) -> Any:
    def wrong(self: Any, rows: range, outputs: Any, tokens: int) -> None:
        full = [row for row in rows if self.lengths[row] + tokens >= self.slots]
        right(self, rows, outputs, tokens)
        for row in full:
            for buffer in self._buffers:
                buffer[row, self.slots - 1] = 0

    return wrong


def _forgets_when_growing(right: Any) -> Any:
    def wrong(self: Any, outputs: Any) -> None:
        before = self._buffers[0].shape[1]
        right(self, outputs)
        if self._buffers[0].shape[1] != before:
            for buffer in self._buffers:
                buffer[:, : self.length - 1] = 0

    return wrong


def _of_other_images(right: Any) -> Any:
    def wrong(self: Any, embeds: Any, questions: Any, images: Any = None, **more: Any) -> Any:
        mixed = None if images is None else [i % len(embeds) for i in range(len(images))]
        return right(self, embeds, questions, mixed, **more)

    return wrong


def _pairs_of_other_images(right: Any) -> Any:
    def wrong(self: Any, embeds: Any, texts: Any, rows: Any, *more: Any) -> Any:
        return right(self, embeds, texts, [i % len(embeds) for i in range(len(rows))], *more)

    return wrong


def _ranked_by_columns(right: Any) -> Any:
    def wrong(self: Any, images: Any, texts: Any, **more: Any) -> Any:
        found = right(self, images, texts, **more)
        same = len(images) == len(texts)
        return replace(found, probability=found.probability.T) if same else found

    return wrong


def _over_black(right: Any) -> Any:
    def wrong(image: Any) -> Any:
        if "A" in image.getbands():
            from PIL import Image

            layer = image.convert("RGBA")
            background = Image.new("RGBA", layer.size, (0, 0, 0, 255))
            return Image.alpha_composite(background, layer).convert("RGB")
        return right(image)

    return wrong


def _module(module: str, name: str, make: Callable[[Any], Any]) -> Callable[[], Any]:
    def active() -> Any:
        from importlib import import_module

        return _patched(import_module(module), name, make)

    return active


def _quick(_: Any) -> Any:
    """Reduces large images first, which is faster and blurs."""

    def wrong(self: Any, image: Any) -> Any:
        size = (self.settings.width, self.settings.height)
        return image.resize(size, 3, reducing_gap=1.5)

    return wrong


def _cropped(_: Any) -> Any:
    def wrong(self: Any, image: Any) -> Any:
        from PIL import ImageOps

        return ImageOps.fit(image, (self.settings.width, self.settings.height), method=3)

    return wrong


def _floored(_: Any) -> Any:
    """Resizes in float and cuts what stands behind the point."""

    def wrong(self: Any, image: Any) -> Any:
        from PIL import Image

        size = (self.settings.width, self.settings.height)
        planes = [
            np.asarray(Image.fromarray(plane).resize(size, 3))
            for plane in np.asarray(image, dtype=np.float32).transpose(2, 0, 1)
        ]
        return Image.fromarray(np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8))

    return wrong


def _crop(data: dict[str, Any]) -> None:
    data["do_center_crop"] = True
    data["crop_size"] = dict(data["size"])


def _no_mean(data: dict[str, Any]) -> None:
    del data["image_mean"]


def _processor(change: Any) -> dict[str, Any]:
    return {"plant": processor("preprocessor_config.json", change)}


_BEAMS = ("runtime.generation.generate", "BeamSearch", "__init__")

THIRD_FAULTS: list[dict[str, Any]] = [
    graph_fault(
        "rows of a batch share the first one's mask",
        "vqa",
        _TEXT,
        graphs.before("attention_mask", "Gather", [0], TensorProto.INT64),
        r"",
    ),
    graph_fault(
        "rows of a batch share the first one's keys",
        "caption",
        _DECODER,
        graphs.before("cross.1.key", "Gather", [0], TensorProto.INT64),
        r"(layers\.1\.cross_attention|cross\.1)",
    ),
    graph_fault(
        "mask constant -1e9, beyond half precision",
        "vqa",
        _TEXT,
        graphs.constant("/Mul", lambda a: a * 0 - 1e9),
        r"graph",
    ),
    graph_fault(
        "positions stop at 16",
        "caption",
        _DECODER,
        graphs.before("position_ids", "Min", 16, TensorProto.INT64),
        r"embeddings",
    ),
    graph_fault(
        "projection head off by 0.1 %",
        "itm",
        "vision_projection",
        graphs.weight("projection.weight", graphs.noise(1e-3)),
        r"projection",
    ),
    graph_fault(
        "softmax through half precision",
        "caption",
        _VISION,
        rounded_to_half("/layers.1/attention/Softmax"),
        r"layers\.1\.attention",
    ),
    graph_fault(
        "vision epsilon 1e-6",
        "itm",
        _VISION,
        graphs.attribute("/layers.2/attention_norm/LayerNormalization", "epsilon", 1e-6),
        r"layers\.2\.attention_norm",
    ),
    graph_fault(
        "new keys and values crossed",
        "vqa",
        _DECODER,
        graphs.swap_outputs("new.1.key", "new.1.value"),
        r"layers\.1\b",
    ),
    ir_fault(
        "rows of a batch share the first one's mask",
        "vqa",
        _TEXT,
        _first_row("attention_mask"),
        r"",
    ),
    ir_fault(
        "rows of a batch share the first one's image",
        "itm",
        _TEXT,
        _first_row("image_embeds"),
        r"layers\.\d\.cross",
    ),
    ir_fault(
        "tanh GELU in a text encoder",
        "vqa",
        _TEXT,
        irs.tanh_gelu("/layers.1/feed_forward/feed_forward/activation"),
        r"layers\.1\.feed_forward\.feed_forward\.activation",
    ),
    integer_fault(
        "one scale per tensor",
        "caption",
        _VISION,
        _one_scale("/layers.2/feed_forward/inner/MatMul"),
        r"layers\.2\.feed_forward\.inner",
    ),
    integer_fault(
        "zero point off by one",
        "vqa",
        _VISION,
        _shifted("/layers.1/feed_forward/activation/Mul_1"),
        r"layers\.1\.feed_forward",
    ),
    integer_fault(
        "threshold halved",
        "itm",
        _VISION,
        integers._range("/layers.2/feed_forward/activation/Mul_1", 0.5),
        r"layers\.2\.feed_forward",
    ),
    other_fault(
        "length penalty ignored",
        "caption",
        r"generation: length penalty",
        active=_in(*_BEAMS, _without(length_penalty=1.0)),
    ),
    # Early stopping is not among them: on checkpoints as sure as these it changes no answer,
    # whatever the penalties. tests/test_runtime_generation.py has it, on random weights.
    other_fault(
        "repeated n-grams allowed",
        "vqa",
        r"generation: repeated n-grams",
        active=_in(
            "runtime.generation.settings",
            "ScoreRules",
            "__init__",
            _without(no_repeat_ngram_size=0),
        ),
    ),
    other_fault(
        "least length counts the prompt twice",
        "caption",
        r"generation: ",
        active=_in(
            "runtime.generation.settings",
            "GenerationSettings",
            "lengths",
            lambda right: lambda self, *given: (right(self, *given)[0], right(self, *given)[1] - 1),
        ),
    ),
    other_fault(
        "default answers too short",
        "caption",
        r"generation: default length",
        active=lambda: patch("runtime.generation.settings.DEFAULT_NEW_TOKENS", 16),
    ),
    other_fault(
        "last cache row lost",
        "caption",
        r"host: text_decoder cache",
        active=_in("runtime.decoding.caches", "FixedCache", "append", _last_row_lost),
    ),
    other_fault(
        "cache forgets when it grows",
        "vqa",
        r"host: text_decoder cache",
        active=_in("runtime.decoding.caches", "GrowingCache", "append", _forgets_when_growing),
    ),
    other_fault(
        "questions of other images",
        "vqa",
        r"generation: rows of a batch",
        active=_in("runtime.tasks.generating", "QuestionAnswerer", "answer", _of_other_images),
    ),
    other_fault(
        "texts of other images",
        "itm",
        r"generation: rows of a batch",
        active=_in("runtime.tasks.matching", "Matcher", "_matches", _pairs_of_other_images),
    ),
    other_fault(
        "ranking transposed",
        "itm",
        r"generation: rows of a batch",
        active=_in("runtime.tasks.matching", "Matcher", "rank", _ranked_by_columns),
    ),
    other_fault(
        "transparency over black",
        "caption",
        r"preprocessing: image of transparency",
        active=_module("runtime.preprocessing.images", "to_rgb", _over_black),
    ),
    other_fault(
        "photos stay lying",
        "vqa",
        r"preprocessing: image of a rotated",
        active=_module("runtime.preprocessing.images", "_upright", lambda _: lambda image: image),
    ),
    other_fault(
        "large images reduced first",
        "caption",
        r"preprocessing: ",
        active=_in("runtime.preprocessing.processor", "ImagePreprocessor", "resized", _quick),
    ),
    other_fault(
        "image cropped, not stretched",
        "itm",
        r"preprocessing: ",
        active=_in("runtime.preprocessing.processor", "ImagePreprocessor", "resized", _cropped),
    ),
    other_fault(
        "levels rounded down",
        "vqa",
        r"preprocessing: ",
        active=_in("runtime.preprocessing.processor", "ImagePreprocessor", "resized", _floored),
    ),
    other_fault(
        "long question cut",
        "vqa",
        r"tokenization: ",
        active=_in(
            "runtime.preprocessing.processor",
            "TextTokenizer",
            "question",
            lambda right: lambda self, text: right(self, text)[:40],
        ),
    ),
    other_fault(
        "processor file crops", "itm", r"preprocessing: .*do_center_crop", **_processor(_crop)
    ),
    other_fault(
        "processor file has no mean", "vqa", r"preprocessing: .*image_mean", **_processor(_no_mean)
    ),
]
