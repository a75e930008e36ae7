"""Opens images of any kind safely and turns them into upright RGB."""

from __future__ import annotations

import importlib
import io
import threading
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Tuple, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError
from ..files.image_names import MAXIMUM_PIXELS as MAXIMUM_PIXELS


@dataclass(frozen=True)
class PreparedImage:
    """An image that went through the checkpoint's image processor already."""

    #: ``[3, height, width]`` float32
    pixels: "np.ndarray[Any, Any]"


#: What the tasks accept; arrays are uint8 ``[height, width]`` or ``[height, width, 1|3|4]``.
ImageSource = Union[str, Path, bytes, Image.Image, "np.ndarray[Any, Any]", PreparedImage]

#: Larger images are decoded one at a time, whatever number of threads prepares images.
_LARGE_PIXELS = 16_000_000
#: Pixels that are converted at a time: what a conversion needs besides is a few MB.
_STRIP_PIXELS = 1 << 20
#: Larger files are refused before they are read.
MAXIMUM_FILE_BYTES = 512 << 20

# Never every format Pillow knows: EPS, for one, starts an external interpreter.
_COMMON_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM")
_OTHER_FORMATS = ("WEBP", "TIFF", "MPO", "JPEG2000", "AVIF", "ICO", "TGA", "HEIF")

#: What a phone's pictures start with, after a length; Pillow itself reads none of them.
_HEIC_KINDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ORIENTATION = 0x0112

_pillow_lock = threading.Lock()
_large_lock = threading.Lock()


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
        converted = _deep_grey(image)
    elif "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        converted = _over_white
    else:
        return image.convert("RGB")
    whole = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        whole.paste(converted(strip), (0, top))
    return whole


def _strips(image: Image.Image) -> Iterator[Tuple[int, Image.Image]]:
    """An image from top to bottom, a few rows at a time, each after its first row's number."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(top + rows, height)))


def _over_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    background = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(background, layer).convert("RGB")


def _deep_grey(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """How grey of more than 8 bits becomes RGB: the greatest value of the whole image decides."""
    # Pillow's own conversion makes everything above 255 white, and drops what follows the point.
    if image.mode.startswith("I;16"):
        table = _from_16_bits(np.arange(1 << 16)).astype(np.uint8)
        return lambda strip: Image.fromarray(table[np.asarray(strip)]).convert("RGB")
    change: Callable[[np.ndarray], np.ndarray] = np.trunc
    highest = max(float(_levels(strip).max()) for _, strip in _strips(image))
    if image.mode == "F" and highest <= 1.0:
        change = _from_unit_range
    elif highest > 255.0:
        change = _from_16_bits

    def converted(strip: Image.Image) -> Image.Image:
        values = np.clip(change(_levels(strip)), 0, 255).astype(np.uint8)
        return Image.fromarray(values).convert("RGB")

    return converted


def _levels(image: Image.Image) -> np.ndarray:
    values = np.asarray(image, dtype=np.float64)
    return np.nan_to_num(values, nan=0.0, posinf=65535.0, neginf=0.0)


def _from_16_bits(values: np.ndarray) -> np.ndarray:
    return np.rint(values / 257.0)


def _from_unit_range(values: np.ndarray) -> np.ndarray:
    return np.rint(values * 255.0)


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
        if _is_heic(data):
            raise InputError(
                f"{where}: a HEIC picture; pip install pillow-heif, or save it as JPEG"
            ) from None
        raise InputError(f"{where}: not an image in a supported format") from None
    except MemoryError:
        raise InputError(f"{where}: needs more memory than there is; make it smaller") from None
    except Exception as error:
        raise InputError(f"{where}: damaged image ({_short(error)})") from None
    return _upright_rgb(image, where, maximum_pixels)


def _open(data: bytes) -> Image.Image:
    # Pillow has a limit of its own, which users cannot set; ours is looked at before any pixel is
    # decoded. Limit and warnings are the process's: of our threads one at a time changes them.
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data), formats=_COMMON_FORMATS)
        except UnidentifiedImageError:
            Image.init()
            if _is_heic(data):
                _add_heic()
            known = [name for name in _OTHER_FORMATS if name in Image.OPEN]
            return Image.open(io.BytesIO(data), formats=known)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_KINDS


def _add_heic() -> None:
    """Lets Pillow read HEIC, where the package for it is installed."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return


def _upright_rgb(image: Image.Image, where: str, maximum_pixels: int) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise InputError(f"{where}: has no pixels ({width} x {height})")
    if width * height > maximum_pixels:
        raise InputError(
            f"{where}: {width} x {height} is more than {maximum_pixels} pixels; make it smaller, "
            "or allow more (--max-pixels, maximum_pixels=)"
        )
    try:
        with ExitStack() as alone:
            if width * height > _LARGE_PIXELS:
                alone.enter_context(_large_lock)
            image.load()
            return to_rgb(_upright(image))
    except MemoryError:
        raise InputError(f"{where}: needs more memory than there is; make it smaller") from None
    except Exception as error:
        raise InputError(f"{where}: damaged image ({_short(error)})") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        # Pillow copies an image even if it is upright.
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return image
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
