"""Pictures are prepared faster without another pixel: in parts, at a part of their size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime.files.manifests import ImageSettings
from runtime.preprocessing import images as runtime_images
from runtime.preprocessing.images import load_image, resize, resize_in_parts
from runtime.preprocessing.processor import ImagePreprocessor

SETTINGS = ImageSettings(
    height=24,
    width=24,
    resample="bicubic",
    rescale_factor=1 / 255,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
)
_SIDES = st.integers(1, 160)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def photo(width: int, height: int) -> Image.Image:
    """Smooth shapes with a little noise, as cameras see them."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(40, 216, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), 3), dtype=np.float32)
    grain = generator.normal(0, 3, smooth.shape)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


@settings(max_examples=150, deadline=None)
@given(
    old=st.tuples(_SIDES, _SIDES),
    new=st.tuples(_SIDES, _SIDES),
    resample=st.sampled_from([1, 2, 3]),
    parts=st.integers(1, 5),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
)
def test_parts_change_no_pixel(
    old: tuple[int, int], new: tuple[int, int], resample: int, parts: int, mode: str
):
    image = noise(*old, mode)
    expected = np.asarray(image.resize(new, resample))
    if runtime_images._rows_first(image, new, resample):
        parts = min(parts, old[1])
        found = np.asarray(resize_in_parts(image, new, resample, parts))
        assert np.array_equal(found, expected)
    else:
        # Pillow takes the height first: two passes in the other order.
        columns = image.resize((old[0], new[1]), resample).resize(new, resample)
        rows = image.resize((new[0], old[1]), resample).resize(new, resample)
        assert any(np.array_equal(np.asarray(one), expected) for one in (columns, rows))


@pytest.mark.parametrize("size", [(1700, 1300), (1300, 1700), (1201, 1999), (5000, 450)])
@pytest.mark.parametrize("name", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_large_pictures_of_every_filter(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], name: str
):
    calls = []
    whole = resize_in_parts
    monkeypatch.setattr(
        runtime_images, "resize_in_parts", lambda *given: calls.append(given[3]) or whole(*given)
    )
    image, number = noise(*size), {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}[name]
    found = np.asarray(resize(image, (384, 384), number, 4))
    assert np.array_equal(found, np.asarray(image.resize((384, 384), number)))
    assert calls == ([] if name == "nearest" else [2])


def test_one_picture_at_a_time_is_divided(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime_images, "resize_in_parts", None)
    image = noise(2100, 1100)
    expected = np.asarray(image.resize((24, 24), 3))
    assert np.array_equal(np.asarray(resize(image, (24, 24), 3, 1)), expected)
    with runtime_images._split_lock:
        assert np.array_equal(np.asarray(resize(image, (24, 24), 3, 2)), expected)


def test_an_unknown_pillow_divides_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime_images, "resize_in_parts", None)
    monkeypatch.setattr(runtime_images, "_pillow", "14.0.0")
    assert resize(noise(2100, 1100), (24, 24), 3, 2).size == (24, 24)


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((400, 300), (100, 75)),
        ((600, 500), (150, 125)),
        ((90, 61), (90, 61)),
        ((202, 302), (101, 151)),
    ],
)
def test_jpegs_are_decoded_at_a_part_of_their_size(size: tuple[int, int], decoded: tuple[int, int]):
    data = jpeg(photo(*size))
    assert load_image(data).size == size
    assert load_image(data, at_least=48).size == decoded


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_scaled_decoding_is_within_two_levels(orientation: int, subsampling: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photo(960, 720), subsampling=subsampling, exif=exif)
    exact, scaled = ImagePreprocessor(SETTINGS), ImagePreprocessor(SETTINGS, scaled_jpeg=True)
    spread = np.array(SETTINGS.std)[:, None, None] * 255
    levels = np.abs(exact([data])[0] - scaled([data])[0]) * spread
    assert 0 < levels.max() <= 2.01


def test_only_encoded_jpegs_are_scaled(tmp_path: Path):
    path = tmp_path / "picture.png"
    photo(960, 720).save(path, compress_level=1)
    exact, scaled = ImagePreprocessor(SETTINGS), ImagePreprocessor(SETTINGS, scaled_jpeg=True)
    assert np.array_equal(exact([path]), scaled([path]))
    opened = Image.open(io.BytesIO(jpeg(photo(960, 720))))
    assert opened.size == (960, 720)
    assert np.array_equal(exact([opened.copy()]), scaled([opened]))
