"""Pixels as the checkpoint's image processor makes them, without torch or OpenCV."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from PIL import Image

from ..errors import ArtifactError, InputError
from ..files.manifests import ImageSettings
from .images import ImageSource, PreparedImage, load_image

# Numbers of Pillow's filters: their names moved between Pillow versions, the numbers did not.
_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
_CHANNELS = 3


class ImagePreprocessor:
    """Resize, rescale, normalise: equal to HuggingFace's Pillow image processor for BLIP."""

    def __init__(self, settings: ImageSettings) -> None:
        if settings.resample not in _FILTERS:
            raise ArtifactError(
                f"manifest.json: image.resample '{settings.resample}': choose from "
                + ", ".join(_FILTERS)
            )
        if len(settings.mean) != _CHANNELS or len(settings.std) != _CHANNELS:
            raise ArtifactError("manifest.json: image.mean and image.std: need 3 values each")
        self.settings = settings
        # A channel has 256 levels: a table gives bit-equal results faster than arithmetic.
        # Rounding to float32 after the multiplication is what HuggingFace does.
        levels = (np.arange(256, dtype=np.float64) * settings.rescale_factor).astype(np.float32)
        mean = np.array(settings.mean, dtype=np.float32)[:, None]
        std = np.array(settings.std, dtype=np.float32)[:, None]
        self._levels = (levels[None, :] - mean) / std

    def __call__(self, images: Sequence[ImageSource]) -> np.ndarray:
        """Images as ``pixel_values`` ``[batch, 3, height, width]`` float32.

        Raises:
            InputError: an image is missing, damaged or too large.
        """
        shape = (len(images), _CHANNELS, self.settings.height, self.settings.width)
        pixel_values = np.empty(shape, dtype=np.float32)
        for index, source in enumerate(images):
            if isinstance(source, PreparedImage):
                if source.pixels.shape != shape[1:]:
                    raise InputError(
                        f"prepared image of shape {list(source.pixels.shape)}: this artifact takes "
                        f"{list(shape[1:])}"
                    )
                pixel_values[index] = source.pixels
            else:
                self._fill(pixel_values[index], load_image(source))
        return pixel_values

    def prepare(self, source: ImageSource) -> PreparedImage:
        """Does an image's whole work ahead, in whatever thread; calls then take it as it is.

        Raises:
            InputError: the image is missing, damaged or too large.
        """
        if isinstance(source, PreparedImage):
            return source
        return PreparedImage(self.pixels(load_image(source)))

    def pixels(self, image: Image.Image) -> np.ndarray:
        """One RGB image as ``[3, height, width]`` float32."""
        shape = (_CHANNELS, self.settings.height, self.settings.width)
        pixels = np.empty(shape, dtype=np.float32)
        self._fill(pixels, image)
        return pixels

    def _fill(self, pixels: np.ndarray, image: Image.Image) -> None:
        resized = np.asarray(self.resized(image))
        for channel in range(_CHANNELS):
            # A mode other than "raise" spares numpy a copy; no level is out of range.
            levels, plane = self._levels[channel], resized[:, :, channel]
            np.take(levels, plane, out=pixels[channel], mode="clip")

    def resized(self, image: Image.Image) -> Image.Image:
        """One RGB image at the model's size; doing it twice changes nothing."""
        size = (self.settings.width, self.settings.height)
        return image.resize(size, _FILTERS[self.settings.resample])
