"""Defects of the runtime: how images become pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from tests.faults.fault import Fault, host_fault
from tests.faults.patches import function, method


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


def _over_black(right: Any) -> Any:
    def wrong(image: Any) -> Any:
        if "A" in image.getbands():
            from PIL import Image

            layer = image.convert("RGBA")
            background = Image.new("RGBA", layer.size, (0, 0, 0, 255))
            return Image.alpha_composite(background, layer).convert("RGB")
        return right(image)

    return wrong


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


IMAGE_FAULTS: list[Fault] = [
    host_fault(
        "BGR instead of RGB", "caption", r"preprocessing: channel order reversed", active=_bgr
    ),
    host_fault("image mirrored", "itm", r"preprocessing: image mirrored", active=_mirrored),
    host_fault("rescaled twice", "caption", r"preprocessing: ", active=_rescaled_twice),
    host_fault("image padded, not stretched", "vqa", r"preprocessing: ", active=_thumbnail),
    host_fault(
        "transparency over black",
        "caption",
        r"preprocessing: image of transparency",
        active=function("runtime.preprocessing.images", "to_rgb", _over_black),
    ),
    host_fault(
        "EXIF rotation ignored",
        "vqa",
        r"preprocessing: image of a rotated",
        active=function("runtime.preprocessing.images", "_upright", lambda _: lambda image: image),
    ),
    host_fault(
        "large images reduced before they are resized",
        "caption",
        r"preprocessing: ",
        active=method("runtime.preprocessing.processor", "ImagePreprocessor", "resized", _quick),
    ),
    host_fault(
        "image cropped, not stretched",
        "itm",
        r"preprocessing: ",
        active=method("runtime.preprocessing.processor", "ImagePreprocessor", "resized", _cropped),
    ),
    host_fault(
        "resized pixels rounded down",
        "vqa",
        r"preprocessing: ",
        active=method("runtime.preprocessing.processor", "ImagePreprocessor", "resized", _floored),
    ),
]
