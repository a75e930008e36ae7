"""The runtime's pixels against HuggingFace's image processor, on images of many kinds."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from runtime.preprocessing.images import ImageSource
from runtime.preprocessing.processor import ImagePreprocessor
from verify.answers.cases import SEED_STRIDE, picture
from verify.checkpoint.checkpoint import Checkpoint
from verify.host.finding import Finding
from verify.layers.graph import Array

#: Largest difference allowed: the runtime promises the same bits.
EXACT = 0.0
#: EXIF's tag of a photo's orientation, and its value for a quarter turn.
_ORIENTATION, _QUARTER_TURN = 0x0112, 6


def compare_preprocessing(
    preprocessor: ImagePreprocessor, checkpoint: Checkpoint, seed: int
) -> list[Finding]:
    """Scenes and synthetic images of odd sizes; the first difference is explained."""
    for name, given, image in _all_images(seed):
        expected = checkpoint.processor([image], return_tensors="np")["pixel_values"]
        found = preprocessor([given])
        if found.shape != expected.shape:
            what = f"{name}: shape {list(found.shape)} instead of {list(expected.shape)}"
            return [Finding("preprocessing", "size", what)]
        error = float(np.abs(found - expected).max())
        if not error <= EXACT:
            same = given is image
            where = explain(image, found, expected, checkpoint) if same else f"image of {name}"
            return [Finding("preprocessing", where, f"{name}: pixels differ by up to {error:.3g}")]
    return []


def _all_images(seed: int) -> Iterator[tuple[str, ImageSource, Image.Image]]:
    """Name, what the runtime is given, and the upright RGB picture that it stands for."""
    for name, image in images(seed):
        yield name, image, image
    yield from _encoded()


@lru_cache(maxsize=1)
def _encoded() -> tuple[tuple[str, ImageSource, Image.Image], ...]:
    """Files and modes as users have them; what they stand for, by Pillow's own conversions."""
    generator = np.random.default_rng(1)
    coarse = generator.integers(0, 256, (24, 40, 3), dtype=np.uint8)
    large = Image.fromarray(coarse).resize((1600, 900), Image.Resampling.BICUBIC)
    small = large.resize((160, 90))
    jpeg = _file(large, "JPEG", quality=90)
    turned = Image.Exif()
    turned[_ORIENTATION] = _QUARTER_TURN
    rotated = _file(small, "JPEG", exif=turned)
    inks = _file(small.convert("CMYK"), "JPEG")
    palette = small.convert("P", palette=Image.Palette.ADAPTIVE)
    opaque = small.copy()
    opaque.putalpha(255)
    veil = np.tile(np.linspace(0, 255, 160).astype(np.uint8), (90, 1))
    sheer = small.copy()
    sheer.putalpha(Image.fromarray(veil))
    white = Image.new("RGB", small.size, "white")
    levels = np.floor(np.linspace(0, 65535, 160 * 90)).reshape(90, 160)
    deep = Image.fromarray(levels.astype(np.uint16))
    grey = Image.fromarray(np.rint(levels / 257).astype(np.uint8))
    return (
        ("a large JPEG file", jpeg, _opened(jpeg)),
        ("a rotated photo", rotated, ImageOps.exif_transpose(_opened(rotated))),
        ("CMYK", inks, _opened(inks).convert("RGB")),
        ("a palette", palette, palette.convert("RGB")),
        ("full opacity", opaque, small),
        ("transparency", sheer, Image.composite(small, white, sheer.getchannel("A"))),
        ("16-bit grey", deep, grey.convert("RGB")),
        ("one bit", small.convert("1"), small.convert("1").convert("RGB")),
    )


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def images(seed: int) -> Iterator[tuple[str, Image.Image]]:
    """Name and picture: held-out scenes, noise, a gradient, a single channel, narrow and small."""
    first = seed * SEED_STRIDE
    for scene in range(first, first + 3):
        yield f"scene {scene}", picture(scene)
    yield from _synthetic()


@lru_cache(maxsize=1)
def _synthetic() -> tuple[tuple[str, Image.Image], ...]:
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (213, 317, 3), dtype=np.uint8)
    ramp = np.zeros((300, 90, 3), dtype=np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 300)[:, None]
    ramp[..., 2] = np.linspace(255, 0, 90)[None, :]
    small = generator.integers(0, 256, (17, 9, 3), dtype=np.uint8)
    return (
        ("noise", Image.fromarray(noise)),
        ("gradient", Image.fromarray(ramp)),
        ("small image", Image.fromarray(small)),
        ("grey image", Image.fromarray(noise[..., 0])),
    )


def explain(image: Image.Image, found: Array, expected: Array, checkpoint: Checkpoint) -> str:
    """Which known mistake gives these pixels; ``pixel values`` if none does."""
    truth = checkpoint.processor
    mean = np.array(truth.image_mean, dtype=np.float64)[:, None, None]
    std = np.array(truth.image_std, dtype=np.float64)[:, None, None]
    plain = expected * std + mean
    guesses: dict[str, Callable[[], Array]] = {
        "channel order reversed": lambda: _normal(plain[:, ::-1], mean, std),
        "channels reversed after normalisation": lambda: expected[:, ::-1],
        "mean and std missing": lambda: plain,
        "mean missing": lambda: plain / std,
        "std missing": lambda: plain - mean,
        "rescaling missing": lambda: _normal(plain * 255, mean, std),
        "rescaling and normalisation missing": lambda: plain * 255,
        "image mirrored": lambda: expected[..., ::-1],
        "height and width swapped": lambda: np.swapaxes(expected, -1, -2),
    }
    for name, number in {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}.items():
        guesses[f"resize filter {name}"] = lambda number=number: _resized(  # type: ignore[misc]
            image, number, expected.shape, mean, std
        )
    own = float(np.abs(found - expected).max())
    errors = {name: float(np.abs(found - guess()).max()) for name, guess in guesses.items()}
    best = min(errors, key=lambda name: errors[name])
    return best if errors[best] < 0.02 * max(own, 1e-9) else "pixel values"


def _normal(plain: Array, mean: Array, std: Array) -> Array:
    return (plain - mean) / std


def _resized(
    image: Image.Image, number: int, shape: tuple[int, ...], mean: Array, std: Array
) -> Array:
    small = image.convert("RGB").resize((shape[3], shape[2]), number)
    plain = np.asarray(small, dtype=np.float64).transpose(2, 0, 1)[None] / 255.0
    return _normal(plain, mean, std)
