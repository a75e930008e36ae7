"""The checkpoint's processor: pixels without torch or OpenCV, and token ids."""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional, Sequence

import numpy as np
from PIL import Image

from ..errors import ArtifactError, BackendError, InputError
from ..files.manifests import ImageSettings, TextSettings
from .images import ImageSource, PreparedImage, load_image

# Numbers of Pillow's filters: their names moved between Pillow versions, the numbers did not.
_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
_CHANNELS = 3
#: Longer texts are refused before tokenisation; no net takes more than 512 tokens.
MAXIMUM_CHARACTERS = 20_000


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


class TextTokenizer:
    """The checkpoint's tokenizer. Safe to share between threads."""

    def __init__(self, path: Path, settings: TextSettings) -> None:
        """Loads ``tokenizer.json``.

        Raises:
            ArtifactError: missing or damaged.
            BackendError: the ``tokenizers`` package is missing.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise BackendError("tokenizers is not installed; pip install tokenizers") from None
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise ArtifactError(f"{path}: not a tokenizer ({reason}); rebuild it") from None
        # Lengths are decided by the net in use, not by what was saved with the tokenizer.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.settings = settings

    def encode(self, text: Optional[str]) -> List[int]:
        """Token ids with [CLS] first and [SEP] last.

        Raises:
            InputError: not a text, or far too long.
        """
        if not isinstance(text, str):
            raise InputError(f"text of type {type(text).__name__}: pass a string")
        if len(text) > MAXIMUM_CHARACTERS:
            raise InputError(f"text of {len(text)} characters: at most {MAXIMUM_CHARACTERS}")
        try:
            ids: List[int] = self._tokenizer.encode(text).ids
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else "cannot be tokenised"
            raise InputError(f"text: {reason}; pass plain Unicode") from None
        return ids

    def prompt(self, text: Optional[str]) -> List[int]:
        """Token ids of a caption prompt: start token first, no final [SEP]."""
        if not text:
            return [self.settings.start_token_id]
        ids = self.encode(text)
        return [self.settings.start_token_id, *ids[1:-1]]

    def question(self, text: Optional[str]) -> List[int]:
        """Token ids of a question or text, with the first token that the artifact was built for."""
        ids = self.encode(text)
        if self.settings.question_start == "enc":
            if self.settings.enc_token_id is None:
                raise ArtifactError(
                    "manifest.json: text.enc_token_id: needed by question_start enc"
                )
            ids = [self.settings.enc_token_id, *ids[1:]]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
        return text
