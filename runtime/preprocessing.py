"""Pixels as the checkpoint's image processor makes them, without torch or OpenCV."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from PIL import Image

from runtime.errors import ArtifactError
from runtime.images import ImageSource, load_image
from runtime.manifests import ImageSettings

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
            pixel_values[index] = self.pixels(load_image(source))
        return pixel_values

    def pixels(self, image: Image.Image) -> np.ndarray:
        """One RGB image as ``[3, height, width]`` float32."""
        resized = np.asarray(self.resized(image))
        return np.stack([self._levels[c][resized[:, :, c]] for c in range(_CHANNELS)])

    def resized(self, image: Image.Image) -> Image.Image:
        """One RGB image at the model's size; doing it twice changes nothing."""
        size = (self.settings.width, self.settings.height)
        return image.resize(size, _FILTERS[self.settings.resample])
