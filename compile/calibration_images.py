"""Images that ranges of activations come from: scenes of the training split, or a user's folder.

Loads numpy and Pillow only when pixels are made: an unchanged run needs the digest alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import InputError
from configs.layout import REPOSITORY_ROOT
from configs.load import shown
from configs.manifest import ImageSettings, file_sha256, key_of
from configs.schema import CalibrationConfig

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    Array = np.ndarray[Any, Any]

#: ``calibration.source`` of the procedural scenes.
SCENES = "scenes"
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
#: Scenes between the images of two seeds.
_STRIDE = 100_000


def images_digest(calibration: CalibrationConfig) -> str:
    """Digest of everything that decides the images; reads files, draws nothing.

    Raises:
        InputError: the folder is missing or has no images.
    """
    files = {} if calibration.source == SCENES else _digests(_chosen(calibration))
    return key_of({"calibration": calibration.model_dump(mode="json"), "files": files})


def calibration_pixels(calibration: CalibrationConfig, settings: ImageSettings) -> Iterator[Array]:
    """``[1, 3, height, width]`` float32 of each image, ``calibration.samples`` at most.

    Raises:
        InputError: the folder is missing or has no images, or an image cannot be read.
    """
    from configs.scenes import draw, make_scene

    if calibration.source == SCENES:
        start = calibration.seed * _STRIDE
        for index in range(start, start + calibration.samples):
            # Never the held-out split: that is what answers are measured on.
            yield _pixels(draw(make_scene(index, "train")), settings)
    else:
        for path in _chosen(calibration):
            yield _pixels(_open(path), settings)


def _chosen(calibration: CalibrationConfig) -> list[Path]:
    """Files of the folder, in an order that the seed decides."""
    path = Path(calibration.source).expanduser()
    folder = path if path.is_absolute() else REPOSITORY_ROOT / path
    if not folder.is_dir():
        raise InputError(
            f"calibration.source: {calibration.source}: no such folder; "
            f"name a folder of images, or {SCENES}"
        )
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not images:
        raise InputError(f"{shown(folder)}: calibration.source: no images; put some there")
    count = min(calibration.samples, len(images))
    return random.Random(calibration.seed).sample(images, count)


def _digests(paths: list[Path]) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in paths}


def _open(path: Path) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{shown(path)}: not a readable image ({reason}); replace it") from None


def _pixels(image: Image.Image, settings: ImageSettings) -> Array:
    """Resized, rescaled and normalised as the checkpoint's image processor does."""
    import numpy as np
    from PIL import Image

    kind = Image.Resampling[settings.resample.upper()]
    resized = np.asarray(image.resize((settings.width, settings.height), kind), dtype=np.float32)
    mean, std = (np.array(values, dtype=np.float32) for values in (settings.mean, settings.std))
    scaled = (resized * np.float32(settings.rescale_factor) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])
