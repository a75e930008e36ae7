"""Opens images of any kind safely and turns them into upright RGB."""

from __future__ import annotations

import io
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError


@dataclass(frozen=True)
class PreparedImage:
    """An image that went through the checkpoint's image processor already."""

    #: ``[3, height, width]`` float32
    pixels: "np.ndarray[Any, Any]"


#: What the tasks accept; arrays are uint8 ``[height, width]`` or ``[height, width, 1|3|4]``.
ImageSource = Union[str, Path, bytes, Image.Image, "np.ndarray[Any, Any]", PreparedImage]

#: Larger images are refused before their pixels are decoded: 64 million pixels are 192 MB of RGB.
MAXIMUM_PIXELS = 64_000_000
#: Larger files are refused before they are read.
MAXIMUM_FILE_BYTES = 512 << 20

# Never every format Pillow knows: EPS, for one, starts an external interpreter.
_COMMON_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM")
_OTHER_FORMATS = ("WEBP", "TIFF", "MPO", "JPEG2000", "AVIF", "ICO", "TGA")

_warnings_lock = threading.Lock()


def load_image(source: ImageSource, *, maximum_pixels: int = MAXIMUM_PIXELS) -> Image.Image:
    """Opens an image: path, encoded bytes, Pillow image or uint8 array; an animation's first frame.

    EXIF rotation is applied, transparency is laid over white, 16-bit grey is scaled to 8 bits.

    Returns:
        an RGB image.

    Raises:
        InputError: missing, not an image, damaged, or larger than ``maximum_pixels``.
    """
    if isinstance(source, Image.Image):
        return _upright_rgb(source, "image", maximum_pixels)
    if isinstance(source, np.ndarray):
        return _upright_rgb(_from_array(source), "image array", maximum_pixels)
    if isinstance(source, (bytes, bytearray)):
        return _decode(bytes(source), "image bytes", maximum_pixels)
    if isinstance(source, (str, Path)):
        path = Path(source)
        return _decode(_read(path), str(path), maximum_pixels)
    raise InputError(
        f"image of type {type(source).__name__}: pass a path, bytes, Pillow image or uint8 array"
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB: transparency over white, 16-bit and float grey scaled to 8 bits."""
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        background = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(background, layer).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips everything above 255 to white.
    values = np.asarray(image, dtype=np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=65535.0, neginf=0.0)
    highest = values.max(initial=0.0)
    if image.mode == "F" and highest <= 1.0:
        values = values * 255.0
    elif image.mode.startswith("I;16") or highest > 255.0:
        values = values / 257.0
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; pass an image file")
        size_bytes = path.stat().st_size
        if size_bytes > MAXIMUM_FILE_BYTES:
            raise InputError(f"{path}: {size_bytes} bytes; at most {MAXIMUM_FILE_BYTES} are read")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({_short(error)})") from None


def _decode(data: bytes, where: str, maximum_pixels: int) -> Image.Image:
    try:
        image = _open(data)
    except UnidentifiedImageError:
        raise InputError(f"{where}: not an image in a supported format") from None
    except Image.DecompressionBombError:
        raise InputError(f"{where}: more than {maximum_pixels} pixels; make it smaller") from None
    except MemoryError:
        raise InputError(f"{where}: needs more memory than there is; make it smaller") from None
    except Exception as error:
        raise InputError(f"{where}: damaged image ({_short(error)})") from None
    return _upright_rgb(image, where, maximum_pixels)


def _open(data: bytes) -> Image.Image:
    # Pillow warns of many pixels, in two lines of its own; ours are counted before any is decoded.
    # The filters are the process's: of our threads one at a time changes them.
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return Image.open(io.BytesIO(data), formats=_COMMON_FORMATS)
        except UnidentifiedImageError:
            Image.init()
            known = [name for name in _OTHER_FORMATS if name in Image.OPEN]
            return Image.open(io.BytesIO(data), formats=known)


def _upright_rgb(image: Image.Image, where: str, maximum_pixels: int) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise InputError(f"{where}: has no pixels ({width} x {height})")
    if width * height > maximum_pixels:
        raise InputError(
            f"{where}: {width} x {height} is more than {maximum_pixels} pixels; make it smaller"
        )
    try:
        image.load()
        return to_rgb(_upright(image))
    except MemoryError:
        raise InputError(f"{where}: needs more memory than there is; make it smaller") from None
    except Exception as error:
        raise InputError(f"{where}: damaged image ({_short(error)})") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:
        return image
    return image if turned is None else turned


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8:
        raise InputError(f"image array of dtype {array.dtype}: pass uint8 values from 0 to 255")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise InputError(
            f"image array of shape {list(array.shape)}: pass [height, width] or "
            "[height, width, 1|3|4]"
        )
    return Image.fromarray(array)


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:120] or type(error).__name__
