"""Pictures of every kind: HuggingFace's pixels bit for bit, in bounded memory, up to a limit."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from runtime import Captioner
from runtime.__main__ import main
from runtime.cli.inputs import image_paths
from runtime.errors import InputError
from runtime.files.manifests import read_task_manifest
from runtime.preprocessing import images as runtime_images
from runtime.preprocessing.images import load_image
from runtime.preprocessing.processor import ImagePreprocessor
from tests.runtime_support import IMAGES, ROOT, THREADS, reference_processor

SIZE = (90, 61)
HEIC = b"\0\0\0\x18ftypheic" + bytes(200)


def picture(size: tuple[int, int] = SIZE) -> Image.Image:
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    rgb = np.stack([x * 255 // size[0], y * 255 // size[1], (x * y) % 256], axis=2)
    return Image.fromarray(rgb.astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def grey(scale: float, dtype: type) -> Image.Image:
    """Grey levels up to ``scale``, with what Pillow drops behind the point."""
    values = np.linspace(0, scale, SIZE[0] * SIZE[1]).reshape(SIZE[::-1])
    return Image.fromarray(values.astype(dtype))


def with_alpha(mode: str) -> Image.Image:
    image = picture().convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(SIZE))
    return image


def palette(**options: object) -> bytes:
    return encoded(picture().convert("P"), "PNG", **options)


@pytest.fixture(scope="module")
def preprocessor(exported_artifacts: Path) -> ImagePreprocessor:
    manifest = read_task_manifest(exported_artifacts / "caption" / "manifest.json")
    return ImagePreprocessor(manifest.image)


#: Files as they lie on a disk.
FILES = {
    "palette, one clear colour": palette(transparency=7),
    "palette, clear colours": palette(transparency=bytes(range(0, 256))),
    "LA": encoded(with_alpha("LA"), "PNG"),
    "RGBA": encoded(with_alpha("RGBA"), "PNG"),
    "RGB, one clear colour": encoded(picture(), "PNG", transparency=(3, 4, 5)),
    "L, one clear level": encoded(picture().convert("L"), "PNG", transparency=9),
    "GIF": encoded(picture(), "GIF"),
    "GIF, clear": encoded(picture().convert("P"), "GIF", transparency=3),
    "GIF, animated": encoded(picture(), "GIF", save_all=True, append_images=[picture().rotate(90)]),
    "F": encoded(grey(255.0, np.float32), "TIFF"),
    "I": encoded(grey(255, np.int32), "TIFF"),
    "CMYK": encoded(picture().convert("CMYK"), "JPEG"),
    "1": encoded(picture().convert("1"), "PNG"),
    "large": encoded(picture((3300, 3100)), "PNG", compress_level=1),
    "MPO": encoded(picture(), "MPO", save_all=True, append_images=[picture()]),
}


@pytest.mark.parametrize("strip", [None, 200], ids=["whole", "strips"])
@pytest.mark.parametrize("name", FILES)
def test_files_equal_huggingface(
    exported_artifacts: Path,
    preprocessor: ImagePreprocessor,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    strip: int | None,
):
    if strip is not None:
        monkeypatch.setattr(runtime_images, "_STRIP_PIXELS", strip if name != "large" else 1 << 16)
    with Image.open(io.BytesIO(FILES[name])) as image:
        processor = reference_processor(exported_artifacts, "caption")
        expected = np.asarray(processor([image], return_tensors="np")["pixel_values"])
    assert np.array_equal(preprocessor([FILES[name]]), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "LA"])
def test_turned_files_equal_huggingface(
    exported_artifacts: Path, preprocessor: ImagePreprocessor, orientation: int, mode: str
):
    """HuggingFace's processor turns nothing; it is given the upright picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture() if mode == "RGB" else with_alpha(mode), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    processor = reference_processor(exported_artifacts, "caption")
    expected = np.asarray(processor([upright], return_tensors="np")["pixel_values"])
    assert np.array_equal(preprocessor([data]), expected)


@pytest.mark.parametrize(
    "image",
    [
        grey(65535, np.uint16),
        grey(1.0, np.float32),
        grey(65535, np.int32),
        grey(3000.5, np.float32),
        with_alpha("RGBA"),
    ],
    ids=["16 bits", "unit range", "I", "float", "alpha"],
)
def test_strips_change_no_pixel(monkeypatch: pytest.MonkeyPatch, image: Image.Image):
    whole = np.asarray(load_image(image))
    monkeypatch.setattr(runtime_images, "_STRIP_PIXELS", 7 * SIZE[0])
    assert (np.asarray(load_image(image)) == whole).all()
    # The whole picture decides how its levels are scaled, not each strip.
    assert whole.max() == (255 if image.mode != "F" or image.getextrema()[1] < 2 else 12)


MEASURE = """
import io, resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from runtime.preprocessing.images import load_image
from PIL import Image
import PIL.PngImagePlugin, PIL.TiffImagePlugin
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
load_image(Path(sys.argv[2]))
print(peak() - before)
"""
SIDE = 4000


@pytest.mark.parametrize(
    ("mode", "kind", "buffers"),
    [("RGB", "PNG", 1), ("RGBA", "PNG", 2), ("LA", "PNG", 2), ("I;16", "PNG", 2), ("F", "TIFF", 2)],
)
def test_memory_is_that_of_the_pixels(tmp_path: Path, mode: str, kind: str, buffers: int):
    """Pillow's 4 bytes per pixel, twice where RGB is another picture, and a few strips."""
    path = tmp_path / "large"
    options = {"compress_level": 1} if kind == "PNG" else {"compression": "tiff_lzw"}
    Image.new(mode, (SIDE, SIDE)).save(path, kind, **options)
    command = [sys.executable, "-c", MEASURE, str(ROOT), str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    buffer_mib = 4 * SIDE * SIDE >> 20
    assert int(found.stdout) < buffers * buffer_mib + 60, found.stdout


# Limits and kinds


def test_the_limit_on_pixels_can_be_set(
    exported_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    image = IMAGES[0]
    pixels = image.width * image.height
    path = tmp_path / "a.png"
    image.save(path)
    options = {"target": "onnx", "threads": THREADS}
    with (
        Captioner.from_artifacts(exported_artifacts, maximum_pixels=pixels - 1, **options) as task,
        pytest.raises(InputError, match=r"allow more \(--max-pixels, maximum_pixels=\)"),
    ):
        task(path)
    with Captioner.from_artifacts(exported_artifacts, maximum_pixels=pixels, **options) as task:
        assert task(path).text
    backend = ["--artifacts", str(exported_artifacts), "--target", "onnx", "--threads", "1"]
    assert main(["caption", str(path), *backend, "--max-pixels", str(pixels)]) == 0
    capsys.readouterr()
    assert main(["caption", str(path), *backend, "--max-pixels", str(pixels - 1)]) == 2
    assert "is more than" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["caption", str(path), "--max-pixels", "0"])


def test_more_than_pillow_allows_by_itself(monkeypatch: pytest.MonkeyPatch):
    """Pillow refuses at twice its own limit; ours decides, and Pillow's is left as it was."""
    data = encoded(picture(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert load_image(data).size == SIZE
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_phones_picture_is_reported_with_what_to_install(
    exported_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "IMG_0001.HEIC").write_bytes(HEIC)
    (tmp_path / "stereo.mpo").write_bytes(FILES["MPO"])
    (tmp_path / "movie.MOV").write_bytes(b"\0\0\0\x14ftypqt  " + bytes(200))
    assert [p.name for p in image_paths([str(tmp_path)])] == ["IMG_0001.HEIC", "stereo.mpo"]
    backend = ["--artifacts", str(exported_artifacts), "--target", "onnx", "--threads", "1"]
    assert main(["caption", str(tmp_path), *backend, "--json"]) == 2
    bad, good = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "pip install pillow-heif" in bad["error"]
    assert good["text"]


def test_names_with_control_characters(
    exported_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    name = "a\x1b[2J\x9b\n\udcff.png"
    IMAGES[0].save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)
    backend = ["--artifacts", str(exported_artifacts), "--target", "onnx", "--threads", "1"]
    names = [str(tmp_path / name), str(tmp_path / "none\x1bc.png")]
    assert main(["caption", *names, *backend]) == 2
    printed = capsys.readouterr()
    shown = r"a\x1b[2J\x9b\n\udcff.png"
    assert shown in printed.out
    assert main(["caption", *names, *backend, "--json"]) == 2
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records[0]["image"] == names[0]
    with pytest.raises(SystemExit):
        main(["caption", "--no\x1b[2J"])
    for text in (printed.out, printed.err, capsys.readouterr().err):
        assert not set(text) & set("\x1b\x9b\udcff")
