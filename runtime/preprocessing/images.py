"""Opens images of any kind safely and turns them into upright RGB."""

from __future__ import annotations

import importlib
import io
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Tuple, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL import __version__ as _pillow

from ..errors import InputError
from ..files.image_names import MAXIMUM_PIXELS as MAXIMUM_PIXELS


@dataclass(frozen=True)
class PreparedImage:
    """An image that went through the checkpoint's image processor already."""

    #: ``[3, height, width]`` float32; of a known image nothing
    pixels: "np.ndarray[Any, Any]"
    #: digest of what it was made from, where states of images are kept
    key: Optional[bytes] = None
    #: of a known image what the vision encoder made of it
    states: Any = None


@dataclass(frozen=True)
class ImageFile:
    """A file that was read already."""

    content: bytes
    #: what messages call it
    where: str


#: What the tasks accept; arrays are uint8 ``[height, width]`` or ``[height, width, 1|3|4]``.
ImageSource = Union[str, Path, bytes, Image.Image, "np.ndarray[Any, Any]", ImageFile, PreparedImage]

#: Larger images are decoded one at a time, whatever number of threads prepares images.
_LARGE_PIXELS = 16_000_000
#: Pixels that are converted at a time: what a conversion needs besides is a few MB.
_STRIP_PIXELS = 1 << 20
#: Of an image that is resized by several threads, each takes at least so many.
_PART_PIXELS = 1 << 20
_MOST_PARTS = 8
#: Pillow's number of the filter without passes.
_NEAREST = 0
#: The newest Pillow whose order of passes was looked at.
_KNOWN_PILLOW = 13
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
_split_lock = threading.Lock()


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_image(
    source: ImageSource, *, maximum_pixels: int = MAXIMUM_PIXELS, at_least: Optional[int] = None
) -> Image.Image:
    """Opens an image: path, encoded bytes, Pillow image or uint8 array; an animation's first frame.

    EXIF rotation is applied, transparency is laid over white, 16-bit grey is scaled to 8 bits.

    Args:
        source: the image.
        maximum_pixels: larger images are refused.
        at_least: a JPEG may be decoded at a half, a quarter or an eighth of its size, as long as
            its shorter side keeps so many pixels. Twice the size that it is resized to gives
            nearly the same pixels in less than half of the time. None: always whole.

    Returns:
        an RGB image.

    Raises:
        InputError: missing, not an image, damaged, or larger than ``maximum_pixels``.
    """
    source = read_image(source)
    if isinstance(source, Image.Image):
        return _upright_rgb(source, "image", maximum_pixels)
    if isinstance(source, np.ndarray):
        return _upright_rgb(_from_array(source), "image array", maximum_pixels)
    if isinstance(source, ImageFile):
        return _decode(source, maximum_pixels, at_least)
    raise InputError(
        f"image of type {type(source).__name__}: pass a path, bytes, Pillow image or uint8 array"
    )


def read_image(source: ImageSource) -> ImageSource:
    """The content of a file or of encoded bytes, not decoded yet; other sources as they are.

    Raises:
        InputError: missing or too large a file.
    """
    if isinstance(source, (bytes, bytearray)):
        return ImageFile(bytes(source), "image bytes")
    if isinstance(source, (str, Path)):
        return ImageFile(_read(Path(source)), str(source))
    return source


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


def _decode(file: ImageFile, maximum_pixels: int, at_least: Optional[int]) -> Image.Image:
    data, where = file.content, file.where
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
    return _upright_rgb(image, where, maximum_pixels, at_least)


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


def _upright_rgb(
    image: Image.Image, where: str, maximum_pixels: int, at_least: Optional[int] = None
) -> Image.Image:
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
            if at_least is not None:
                _scale_decoder(image, at_least)
            if image.size[0] * image.size[1] > _LARGE_PIXELS:
                alone.enter_context(_large_lock)
            image.load()
            return to_rgb(_upright(image))
    except MemoryError:
        raise InputError(f"{where}: needs more memory than there is; make it smaller") from None
    except Exception as error:
        raise InputError(f"{where}: damaged image ({_short(error)})") from None


def _scale_decoder(image: Image.Image, at_least: int) -> None:
    """Makes a JPEG's decoder give fewer pixels; other formats have no such decoder."""
    for scale in (8, 4, 2):
        width, height = image.size[0] // scale, image.size[1] // scale
        # A side that is no multiple would be rounded up, and the picture stretched a little.
        whole = (width * scale, height * scale) == image.size
        if whole and min(width, height) >= at_least:
            image.draft(None, (width, height))
            return


def resize(image: Image.Image, size: Tuple[int, int], resample: int, threads: int) -> Image.Image:
    """``image.resize(size, resample)``, bit for bit, large images by several threads.

    One image at a time is divided: beside another one the processors are busy already.
    """
    parts = min(threads, _MOST_PARTS, image.size[0] * image.size[1] // _PART_PIXELS)
    if parts < 2 or not _rows_first(image, size, resample):
        return image.resize(size, resample)
    if not _split_lock.acquire(blocking=False):
        return image.resize(size, resample)
    try:
        return resize_in_parts(image, size, resample, parts)
    finally:
        _split_lock.release()


def resize_in_parts(
    image: Image.Image, size: Tuple[int, int], resample: int, parts: int
) -> Image.Image:
    """Every row gets its new width, several runs of rows at a time; then the height is changed.

    Pillow's two passes are these. A run keeps its height: its second pass has weights 0 and 1.
    """
    width, height = image.size
    narrow = Image.new(image.mode, (size[0], height))
    cuts = [height * part // parts for part in range(parts + 1)]

    def narrowed(part: int) -> Image.Image:
        top, bottom = cuts[part], cuts[part + 1]
        return image.resize((size[0], bottom - top), resample, box=(0, top, width, bottom))

    with ThreadPoolExecutor(parts) as pool:
        for part, rows in enumerate(pool.map(narrowed, range(parts))):
            narrow.paste(rows, (0, cuts[part]))
    return narrow.resize(size, resample)


def _rows_first(image: Image.Image, size: Tuple[int, int], resample: int) -> bool:
    """Whether Pillow takes the width before the height, which is rounded to 8 bits in between.

    Since 13.0 the height comes first where it loses more than twice as much; some releases before
    did so for images a hundred times as high as wide.
    """
    (width, height), (new_width, new_height) = image.size, size
    if resample == _NEAREST or int(_pillow.split(".")[0]) > _KNOWN_PILLOW:
        return False
    return height - new_height <= 2 * (width - new_width) and height <= 100 * width


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
