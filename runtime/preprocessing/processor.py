"""The checkpoint's processor: pixels without torch or OpenCV, and token ids that nets take."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence

import numpy as np
from PIL import Image

from ..errors import ArtifactError, BackendError, BlipEdgeError, InputError
from ..files.manifests import ImageSettings, TextSettings
from ..generation.settings import TRUNCATED_TOKENS
from .images import (
    MAXIMUM_PIXELS,
    ImageSource,
    PreparedImage,
    load_image,
    processors,
    resize,
)

# Numbers of Pillow's filters: their names moved between Pillow versions, the numbers did not.
_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
_CHANNELS = 3
#: Longer texts are refused before tokenisation; no net takes more than 512 tokens.
MAXIMUM_CHARACTERS = 20_000
#: [CLS] or what stands for it, and [SEP].
_FRAME = 2


class ImagePreprocessor:
    """Resize, rescale, normalise: equal to HuggingFace's Pillow image processor for BLIP."""

    def __init__(
        self,
        settings: ImageSettings,
        maximum_pixels: int = MAXIMUM_PIXELS,
        *,
        threads: Optional[int] = None,
        scaled_jpeg: bool = False,
    ) -> None:
        """Checks the settings.

        Args:
            settings: of the checkpoint.
            maximum_pixels: larger images are refused.
            threads: at most so many for one image; None: one per processor.
            scaled_jpeg: decode large JPEGs at a part of their size, at least twice the model's:
                in less than half of the time, pixels differ by 2 of 255 levels at most.
        """
        if settings.resample not in _FILTERS:
            raise ArtifactError(
                f"manifest.json: image.resample '{settings.resample}': choose from "
                + ", ".join(_FILTERS)
            )
        if len(settings.mean) != _CHANNELS or len(settings.std) != _CHANNELS:
            raise ArtifactError("manifest.json: image.mean and image.std: need 3 values each")
        self.settings = settings
        self._maximum_pixels = maximum_pixels
        self._threads = threads or processors()
        self.scaled_jpeg = scaled_jpeg
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
        for source in images:
            if isinstance(source, PreparedImage) and source.pixels.shape != shape[1:]:
                raise InputError(
                    f"prepared image of shape {list(source.pixels.shape)}: this artifact takes "
                    f"{list(shape[1:])}"
                )
        if len(images) == 1 and isinstance(images[0], PreparedImage):
            return images[0].pixels[None]
        pixel_values = np.empty(shape, dtype=np.float32)
        for index, source in enumerate(images):
            if isinstance(source, PreparedImage):
                pixel_values[index] = source.pixels
            else:
                self._fill(pixel_values[index], self._load(source))
        return pixel_values

    def prepare(self, source: ImageSource) -> PreparedImage:
        """Does an image's whole work ahead, in whatever thread; calls then take it as it is.

        Raises:
            InputError: the image is missing, damaged or too large.
        """
        if isinstance(source, PreparedImage):
            return source
        return PreparedImage(self.pixels(self._load(source)))

    def _load(self, source: ImageSource) -> Image.Image:
        at_least = 2 * max(self.settings.width, self.settings.height) if self.scaled_jpeg else None
        return load_image(source, maximum_pixels=self._maximum_pixels, at_least=at_least)

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
        return resize(image, size, _FILTERS[self.settings.resample], self._threads)


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
        with _failures(lambda why: ArtifactError(f"{path}: not a tokenizer ({why}); rebuild it")):
            self._tokenizer = Tokenizer.from_file(str(path))
        # Lengths are decided by the net in use, not by what was saved with the tokenizer.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.settings = settings
        self._unknown_id: Optional[int] = self._tokenizer.token_to_id("[UNK]")

    def encode(self, text: Optional[str]) -> List[int]:
        """Token ids with [CLS] first and [SEP] last.

        Raises:
            InputError: not a text, or far too long.
        """
        if not isinstance(text, str):
            raise InputError(f"text of type {type(text).__name__}: pass a string")
        if len(text) > MAXIMUM_CHARACTERS:
            raise InputError(f"text of {len(text)} characters: at most {MAXIMUM_CHARACTERS}")
        with _failures(lambda why: InputError(f"text: {why}; pass plain Unicode")):
            ids: List[int] = self._tokenizer.encode(text).ids
        return ids

    def continues(self, token_id: int) -> bool:
        """Whether a token goes on with the word of the one before it."""
        return str(self._tokenizer.id_to_token(token_id)).startswith("##")

    def all_unknown(self, ids: Sequence[int]) -> bool:
        """Whether there are tokens, and each stands for a word that the vocabulary lacks."""
        return bool(ids) and set(ids) == {self._unknown_id}

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
        tokens = [int(token) for token in ids]
        with _failures(lambda why: ArtifactError(f"tokenizer.json: {why}; export it again")):
            text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text


@contextmanager
def _failures(named: Callable[[str], BlipEdgeError]) -> Iterator[None]:
    """Turns the library's errors into ours; a panic of its Rust is no ``Exception``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise named(reason) from None


@dataclass(frozen=True)
class ReadText:
    """A text's token ids, and what its user should know of them."""

    ids: List[int]
    warning: Optional[str] = None


class TextReader:
    """Reads questions and descriptions for one task on one target."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        what: str,
        limit: Callable[[], int],
        *,
        truncate: bool = False,
    ) -> None:
        """Reads nothing yet.

        Args:
            tokenizer: the checkpoint's.
            what: what messages call a text.
            limit: most tokens that the nets take, the first and last one included.
            truncate: cut longer texts as BLIP's own code does, rather than refuse them.
        """
        self._tokenizer = tokenizer
        self._what = what
        self._limit = limit
        self._truncate = truncate

    def __call__(self, text: Optional[str]) -> ReadText:
        """A text's token ids.

        Raises:
            InputError: no text, empty, not Unicode, or too long.
        """
        ids = self._tokenizer.question(text)
        if len(ids) <= _FRAME:
            raise InputError(f"{self._what} is empty; write something")
        count, limit = len(ids), self._limit()
        most = min(limit, TRUNCATED_TOKENS) if self._truncate else limit
        if count <= most:
            return ReadText(ids, self._unknown(ids))
        if not self._truncate:
            raise InputError(
                f"{self._what} of {count} tokens, this artifact takes {limit}; shorten it, cut it "
                "(--truncate), or build with larger shapes.text_tokens"
            )
        ids = [*ids[: most - 1], ids[-1]]
        cut = f"{self._what} of {count} tokens was cut to {most}"
        return ReadText(ids, "; ".join(filter(None, [cut, self._unknown(ids)])))

    def tokens(self, text: Optional[str]) -> List[int]:
        """Token ids alone; what there is to know of them is a Python warning."""
        found = self(text)
        if found.warning is not None:
            warnings.warn(found.warning, stacklevel=3)
        return found.ids

    def _unknown(self, ids: List[int]) -> Optional[str]:
        if not self._tokenizer.all_unknown(ids[1:-1]):
            return None
        return f"{self._what} has no word that the vocabulary knows, so it decides nothing"


class PromptReader(TextReader):
    """Reads prompts of captions; without one, a caption is free."""

    def __call__(self, text: Optional[str]) -> ReadText:
        """See ``TextReader``."""
        ids = self._tokenizer.prompt(text)
        count, limit = len(ids), self._limit()
        if count > limit:
            raise InputError(
                f"{self._what} of {count} tokens, this artifact takes {limit}; shorten it, or "
                "build with larger shapes.past_tokens"
            )
        # Neither first nor last token is a frame here: the first one starts every caption.
        return ReadText(ids, self._unknown([*ids, 0]) if count > 1 else None)
