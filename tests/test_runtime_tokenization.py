"""Token ids and texts equal HuggingFace's tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.scenes import caption, questions
from runtime.errors import ArtifactError, InputError
from runtime.files.manifests import read_task_manifest
from runtime.preprocessing.processor import MAXIMUM_CHARACTERS, TextTokenizer
from tests.runtime_support import SCENES, reference_tokenizer

TEXTS = [
    "",
    "   ",
    "a picture of",
    "A Picture OF",
    "how many shapes are there?",
    "what's left of the naïve café — 日本?",
    "unknownword [SEP] [DEC] [PAD]",
    "tabs\tand\nnewlines\u200b\x00",
    "🙂 x" * 50,
    *[caption(scene) for scene in SCENES],
    *[item.question for scene in SCENES for item in questions(scene)],
]


@pytest.fixture(scope="module")
def tokenizer(exported_artifacts: Path) -> TextTokenizer:
    manifest = read_task_manifest(exported_artifacts / "caption" / "manifest.json")
    return TextTokenizer(manifest.folder / "processor" / "tokenizer.json", manifest.text)


@pytest.mark.parametrize("text", TEXTS)
def test_equal_to_huggingface(exported_artifacts: Path, tokenizer: TextTokenizer, text: str):
    reference = reference_tokenizer(exported_artifacts, "caption")
    ids = reference(text)["input_ids"]
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    prompt = tokenizer.prompt(text)
    assert prompt == [tokenizer.settings.start_token_id, *ids[1:-1]]


def test_ids_beyond_the_tokenizer_decode_as_in_huggingface(
    exported_artifacts: Path, tokenizer: TextTokenizer
):
    reference = reference_tokenizer(exported_artifacts, "caption")
    ids = [tokenizer.settings.start_token_id, 7, 42, 3, 0, 0]
    assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_texts_that_cannot_be_used_are_refused(tokenizer: TextTokenizer):
    with pytest.raises(InputError, match="type int"):
        tokenizer.encode(3)
    with pytest.raises(InputError, match="characters"):
        tokenizer.encode("a" * (MAXIMUM_CHARACTERS + 1))
    with pytest.raises(InputError) as caught:
        tokenizer.encode("\ud800 alone")
    assert "\n" not in str(caught.value)


def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, tokenizer: TextTokenizer):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ArtifactError, match="not a tokenizer"):
        TextTokenizer(path, tokenizer.settings)
