"""Which files of a folder are images, by their names, and how large an image may be."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, List

#: Larger images are refused before their pixels are decoded. Pillow holds 4 bytes per pixel: 256 MB
#: for so many, and as much again where they are turned or become RGB.
MAXIMUM_PIXELS = 64_000_000
#: In lower case; ``runtime.preprocessing.images`` opens them.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".pbm"),
    *(".webp", ".tif", ".tiff", ".jp2", ".avif", ".ico", ".tga", ".mpo"),
    # With the package pillow-heif; without it they are reported, not passed over.
    *(".heic", ".heif"),
)


def image_files(paths: Iterable[Path]) -> List[Path]:
    """The images among these paths, sorted."""
    return sorted(
        path
        for path in paths
        # Hidden files with an image's suffix are other programs' notes, not images.
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and not path.is_dir()
    )
