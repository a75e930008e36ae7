"""Which files of a folder are images, by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, List

#: In lower case; ``runtime.preprocessing.images`` opens them.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".pbm"),
    *(".webp", ".tif", ".tiff", ".jp2", ".avif", ".ico", ".tga"),
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
