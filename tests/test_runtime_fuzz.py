"""Mutated images and texts: no exception but InputError, no hang, bounded memory."""

from __future__ import annotations

import io
import random
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime import Captioner, Matcher, QuestionAnswerer
from runtime.errors import InputError
from runtime.files.manifests import read_task_manifest
from runtime.preprocessing.images import load_image
from runtime.preprocessing.processor import ImagePreprocessor, TextTokenizer
from tests.runtime_support import IMAGES, THREADS

#: Mutations per encoding; twelve encodings make 2,160 damaged images.
MUTATIONS = 180
#: One refused image may cost this much at most, whatever its header promises.
MEMORY_BYTES = 900 << 20


def _encodings() -> dict[str, bytes]:
    image = IMAGES[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {}
    for name, kind, options in (
        ("png", "PNG", {}),
        ("png_exif", "PNG", {"exif": exif}),
        ("jpeg", "JPEG", {"exif": exif}),
        ("jpeg_progressive", "JPEG", {"progressive": True}),
        ("gif", "GIF", {}),
        ("bmp", "BMP", {}),
        ("ppm", "PPM", {}),
        ("webp", "WEBP", {}),
        ("tiff", "TIFF", {}),
        ("tiff_lzw", "TIFF", {"compression": "tiff_lzw"}),
        ("tga", "TGA", {}),
        ("ico", "ICO", {}),
    ):
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        made[name] = stream.getvalue()
    return made


ENCODINGS = _encodings()


def must_be_one_line(error: InputError) -> None:
    """Fails unless a message fits one line."""
    assert str(error)
    assert "\n" not in str(error)


def mutated(data: bytes, source: random.Random) -> bytes:
    """A file with flipped, overwritten, removed, repeated or cut bytes; headers are hit most."""
    mutable = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 4, 16))):
        header = source.random() < 0.7
        place = source.randrange(min(len(mutable), 96) if header else len(mutable))
        kind = source.randrange(5)
        if kind == 0:
            mutable[place] ^= 1 << source.randrange(8)
        elif kind == 1:
            mutable[place : place + 4] = source.choice((b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff"))
        elif kind == 2:
            del mutable[place : place + source.choice((1, 4, 64))]
        elif kind == 3:
            mutable[place:place] = mutable[place : place + source.choice((1, 16, 256))]
        else:
            del mutable[max(1, place) :]
        if not mutable:
            mutable = bytearray(b"\0")
    return bytes(mutable)


@pytest.fixture(scope="module")
def preprocessor(exported_artifacts: Path) -> ImagePreprocessor:
    manifest = read_task_manifest(exported_artifacts / "caption" / "manifest.json")
    return ImagePreprocessor(manifest.image)


@pytest.fixture
def bounded_memory():
    """Gives the process room for one refused image, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ENCODINGS)
def test_damaged_images(preprocessor: ImagePreprocessor, name: str):
    source = random.Random(name)
    refused = 0
    for _ in range(MUTATIONS):
        data = mutated(ENCODINGS[name], source)
        try:
            pixels = preprocessor([data])
        except InputError as error:
            refused += 1
            must_be_one_line(error)
            continue
        assert np.isfinite(pixels).all()
    assert refused > 0


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=400))
def test_any_bytes(data: bytes):
    with pytest.raises(InputError) as caught:
        load_image(data)
    must_be_one_line(caught.value)


@pytest.fixture(scope="module")
def tokenizer(exported_artifacts: Path) -> TextTokenizer:
    manifest = read_task_manifest(exported_artifacts / "vqa" / "manifest.json")
    return TextTokenizer(manifest.folder / "processor" / "tokenizer.json", manifest.text)


@pytest.fixture(scope="module")
def tasks(exported_artifacts: Path):
    options = {"target": "onnx", "threads": THREADS}
    with (
        Captioner.from_artifacts(exported_artifacts, **options) as captioner,
        QuestionAnswerer.from_artifacts(exported_artifacts, **options) as answerer,
        Matcher.from_artifacts(exported_artifacts, **options) as matcher,
    ):
        yield captioner, answerer, matcher


class TestTexts:
    @settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
    @given(text=st.text(st.characters(), max_size=300))
    def test_any_text_is_tokenised_or_refused(self, tokenizer: TextTokenizer, text: str):
        try:
            ids = tokenizer.question(text)
        except InputError as error:
            must_be_one_line(error)
            return
        assert ids[0] == tokenizer.settings.cls_token_id
        assert ids[-1] == tokenizer.settings.end_token_id
        assert all(0 <= token < tokenizer.settings.vocabulary_size for token in ids)
        assert isinstance(tokenizer.decode(ids), str)

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(text=st.text(st.characters(exclude_categories=()), max_size=120))
    def test_any_text_through_every_task(self, tasks, text: str):
        captioner, answerer, matcher = tasks
        for call in (
            lambda: captioner(IMAGES[0], text, max_new_tokens=2),
            lambda: answerer(IMAGES[0], text, max_new_tokens=2),
            lambda: matcher(IMAGES[0], text),
        ):
            try:
                call()
            except InputError as error:
                must_be_one_line(error)
