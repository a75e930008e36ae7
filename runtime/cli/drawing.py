"""Draws images with their results to one picture."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, Dict, List, Optional

from PIL import Image, ImageDraw, ImageFont

from ..errors import InputError
from ..preprocessing.images import MAXIMUM_PIXELS, load_image
from .inputs import image_source
from .reports import Line

_TILE_WIDTH = 384
_MARGIN = 12
_TEXT_SIZE = 18
_LINE_HEIGHT = 24
_CHARACTERS = 40
_COLUMNS = 3
_MOST_TILES = 60
_BACKGROUND = (255, 255, 255)
_INK = (20, 20, 20)


def check_writable(path: Path, font: Optional[Path] = None) -> None:
    """Looks, before any work, whether a picture could be written to a file, with a font.

    Raises:
        InputError: no such folder, no kind of picture that Pillow writes, or no font.
    """
    _font(font)
    if not path.parent.is_dir() or path.is_dir():
        raise InputError(f"--show {path}: name a file in a folder that exists")
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise InputError(f"--show {path}: no kind of picture; name a .png or .jpg file")


def draw_results(
    lines: List[Line],
    path: Path,
    maximum_pixels: int = MAXIMUM_PIXELS,
    font: Optional[Path] = None,
) -> None:
    """Writes a picture of up to 60 images, each above what was said of it on every target.

    Raises:
        InputError: nothing to draw, or the file cannot be written.
    """
    by_image: Dict[Path, List[Line]] = {}
    for line in lines:
        by_image.setdefault(line.image, []).append(line)
    if not by_image:
        raise InputError(f"--show {path}: no result to draw")
    letters = _font(font)
    several = len({line.target for line in lines}) > 1
    tiles = [
        _tile(
            load_image(image_source(image), maximum_pixels=maximum_pixels),
            _texts(mine, several),
            letters,
        )
        for image, mine in list(by_image.items())[:_MOST_TILES]
    ]
    columns = min(_COLUMNS, len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (columns * _TILE_WIDTH, sum(heights)), _BACKGROUND)
    top = 0
    for row, height in zip(rows, heights):
        for column, tile in enumerate(row):
            sheet.paste(tile, (column * _TILE_WIDTH, top))
        top += height
    try:
        sheet.save(str(path))
    except (OSError, ValueError) as error:
        raise InputError(f"--show {path}: cannot be written ({error})") from None


def _texts(lines: List[Line], several: bool) -> List[str]:
    texts: List[str] = []
    subject = None
    for line in lines:
        if line.subject is not None and line.subject != subject:
            texts.append(line.subject)
            subject = line.subject
        texts.append(f"{line.target}: {line.text}" if several else line.text)
    return texts


def _tile(image: Image.Image, texts: List[str], font: Any) -> Image.Image:
    width = _TILE_WIDTH - 2 * _MARGIN
    height = max(1, round(image.height * width / image.width))
    wrapped = [part for text in texts for part in textwrap.wrap(text, _CHARACTERS) or [""]]
    tile = Image.new(
        "RGB",
        (_TILE_WIDTH, min(height, 2 * width) + 3 * _MARGIN + _LINE_HEIGHT * len(wrapped)),
        _BACKGROUND,
    )
    shown = image.resize((width, height))
    shown.thumbnail((width, 2 * width))
    tile.paste(shown, (_MARGIN + (width - shown.width) // 2, _MARGIN))
    pen = ImageDraw.Draw(tile)
    for index, text in enumerate(wrapped):
        top = shown.height + 2 * _MARGIN + index * _LINE_HEIGHT
        pen.text((_MARGIN, top), text, fill=_INK, font=font)
    return tile


def _font(path: Optional[Path]) -> Any:
    if path is not None:
        try:
            return ImageFont.truetype(str(path), _TEXT_SIZE)
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"--font {path}: {error}; name a TrueType or OpenType font") from None
    try:
        return ImageFont.load_default(_TEXT_SIZE)
    except (TypeError, OSError):
        # Older Pillow has one small bitmap font only.
        return ImageFont.load_default()
