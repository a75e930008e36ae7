"""Pixels equal HuggingFace's image processor; damaged files are refused in one line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import InputError
from runtime.files.manifests import read_task_manifest
from runtime.preprocessing import images as runtime_images
from runtime.preprocessing.images import load_image
from runtime.preprocessing.processor import ImagePreprocessor
from tests.runtime_support import IMAGES, reference_pixels, reference_processor

SIZE = (90, 61)


def gradient(mode: str) -> Image.Image:
    """A colourful image in a Pillow mode."""
    x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    rgb = np.stack([x * 255 // SIZE[0], y * 255 // SIZE[1], (x * y) % 256], axis=2)
    return Image.fromarray(rgb.astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A small PNG whose header announces many pixels."""
    data = bytearray(encoded(Image.new("1", (1, 1)), "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.fixture(scope="module")
def preprocessor(exported_artifacts: Path) -> ImagePreprocessor:
    manifest = read_task_manifest(exported_artifacts / "caption" / "manifest.json")
    return ImagePreprocessor(manifest.image)


def test_scenes_equal_huggingface(exported_artifacts: Path, preprocessor: ImagePreprocessor):
    expected = reference_pixels(exported_artifacts, "caption")
    found = preprocessor(IMAGES)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "YCbCr", "LA", "RGBA", "HSV"])
@pytest.mark.parametrize("size", [(90, 61), (96, 96), (3, 400), (1, 1)])
def test_modes_equal_huggingface(
    exported_artifacts: Path, preprocessor: ImagePreprocessor, mode: str, size: tuple[int, int]
):
    image = gradient("RGB").resize(size).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(size))
    processor = reference_processor(exported_artifacts, "caption")
    expected = np.asarray(processor([image], return_tensors="np")["pixel_values"])
    assert np.array_equal(preprocessor([image]), expected)


def test_a_transparent_palette_equals_huggingface(
    exported_artifacts: Path, preprocessor: ImagePreprocessor
):
    image = gradient("P")
    image.info["transparency"] = 7
    processor = reference_processor(exported_artifacts, "caption")
    expected = np.asarray(processor([image.copy()], return_tensors="np")["pixel_values"])
    assert np.array_equal(preprocessor([image]), expected)


def test_resizing_twice_changes_nothing(preprocessor: ImagePreprocessor):
    image = IMAGES[0]
    assert (preprocessor([preprocessor.resized(image)]) == preprocessor([image])).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_file_formats(tmp_path: Path, kind: str):
    image = gradient("RGB")
    path = tmp_path / "image"
    path.write_bytes(encoded(image, kind))
    loaded = load_image(path)
    assert loaded.mode == "RGB"
    assert loaded.size == image.size
    if kind in ("PNG", "BMP", "TIFF", "PPM"):
        assert (np.asarray(loaded) == np.asarray(image)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int):
    image = gradient("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(encoded(image, "PNG", exif=exif))
    assert loaded.size == (SIZE if orientation <= 4 else SIZE[::-1])
    if orientation == 3:
        assert (np.asarray(loaded) == np.asarray(image)[::-1, ::-1]).all()


def test_damaged_exif_leaves_the_pixels():
    image = gradient("RGB")
    data = encoded(image, "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert load_image(data).size == SIZE


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 256 * 4).reshape(4, 256).astype(np.uint16)
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.int32), mode="I")):
        grey = np.asarray(load_image(encoded(image, "PNG" if image.mode != "I" else "TIFF")))
        assert np.abs(grey[:, :, 0].astype(float) - values / 257.0).max() <= 0.51
        assert (grey[:, :, 0] == grey[:, :, 2]).all()


def test_float_grey_in_unit_range_is_scaled():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    grey = np.asarray(load_image(encoded(Image.fromarray(values), "TIFF")))
    assert grey.max() == 255
    assert grey.min() == 0


def test_an_animation_gives_its_first_frame():
    frames = [gradient("RGB"), gradient("L").convert("RGB")]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert (np.asarray(load_image(data)) == np.asarray(frames[0])).all()


def test_arrays():
    rgb = np.asarray(gradient("RGB"))
    assert (np.asarray(load_image(rgb)) == rgb).all()
    assert load_image(rgb[:, :, 0]).mode == "RGB"
    assert load_image(rgb[:, :, :1]).size == SIZE
    assert load_image(np.asarray(gradient("RGBA"))).mode == "RGB"
    for wrong in (rgb.astype(np.float32), rgb[:, :, :2], rgb[None], rgb[:0]):
        with pytest.raises(InputError, match="image array"):
            load_image(wrong)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        encoded(gradient("RGB"), "PNG")[:200],
        encoded(gradient("RGB"), "JPEG")[:100],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
        b"GIF89a" + bytes(20),
    ],
    ids=["empty", "text", "cut PNG", "cut JPEG", "EPS", "empty GIF"],
)
def test_damaged_files_are_one_line(tmp_path: Path, data: bytes):
    path = tmp_path / "damaged.png"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_folders_and_other_things(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        load_image(tmp_path / "nothing.png")
    with pytest.raises(InputError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(InputError, match="type int"):
        load_image(3)
    with pytest.raises(InputError, match="cannot be read"):
        load_image("a\0b")


def test_decompression_bombs_are_refused_before_decoding(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
):
    def decode(_self: object) -> None:
        raise AssertionError("pixels were decoded")

    # Pillow itself refuses the first and warns of the third.
    sizes = [(40_000, 40_000), (9_000, 8_000), (12_000, 9_000)]
    claiming = [png_that_claims(*size) for size in sizes]
    monkeypatch.setattr(Image.Image, "load", decode)
    for data in claiming:
        with pytest.raises(InputError, match="pixels"):
            load_image(data)
    assert not recwarn.list


def test_huge_files_are_refused_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "huge.png"
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr(runtime_images, "MAXIMUM_FILE_BYTES", 99)
    with pytest.raises(InputError, match="at most 99"):
        load_image(path)
