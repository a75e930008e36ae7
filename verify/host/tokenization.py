"""The runtime's token ids and texts against HuggingFace's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.scenes import CAPTION_PROMPT, caption, make_scene, matching_pairs, questions
from runtime.preprocessing.processor import TextTokenizer
from verify.answers.cases import SEED_STRIDE
from verify.checkpoint.checkpoint import Checkpoint
from verify.host.finding import Finding

#: What scenes never say: case, accents, punctuation, digits, other scripts, words unknown.
_ODD_TEXTS = (
    "A Red Circle LEFT of a Blue Square",
    "What Color is the Ring?",
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m",
    "isn't it -- well, 3.5 (three) #1?!",
    "\u4e2d\u6587 \u0440\u0443\u0441\u0441\u043a\u0438\u0439",
    "  two   spaces\tand a tab ",
    "antidisestablishmentarianism qwxyz",
    "[SEP] [CLS] [MASK] [DEC]",
    " ".join(["a small red circle above"] * 10),
    "",
)


def compare_tokenization(
    tokenizer: TextTokenizer, checkpoint: Checkpoint, seed: int
) -> list[Finding]:
    """Ids of texts, prompts and questions, and the texts of ids; the first difference of each."""
    found: list[Finding] = []
    for check in (_encoding, _prompts, _questions, _decoding):
        first = next(check(tokenizer, checkpoint, seed), None)
        if first is not None:
            found.append(first)
    return found


def _texts(seed: int) -> Iterator[str]:
    scene = make_scene(seed * SEED_STRIDE)
    yield from (CAPTION_PROMPT, caption(scene))
    yield from sorted({item.question for item in questions(scene)})
    yield from sorted({pair.text for pair in matching_pairs(scene)})
    yield from _ODD_TEXTS


def _encoding(tokenizer: TextTokenizer, checkpoint: Checkpoint, seed: int) -> Iterator[Finding]:
    for text in _texts(seed):
        expected, found = checkpoint.token_ids(text), tokenizer.encode(text)
        if found != expected:
            same_lower = tokenizer.encode(text.lower()) == expected
            where = "lower-casing" if same_lower else _place(found, expected)
            yield Finding("tokenization", where, f"{text!r}: {found} instead of {expected}")


def _place(found: list[int], expected: list[int]) -> str:
    if found[1:-1] == expected[1:-1]:
        return "first token" if found[:1] != expected[:1] else "last token"
    if found == expected[1:-1]:
        return "[CLS] and [SEP] missing"
    return "token ids"


def _prompts(tokenizer: TextTokenizer, checkpoint: Checkpoint, seed: int) -> Iterator[Finding]:
    start = int(checkpoint.text_config.bos_token_id)
    for text in ("", None, *_texts(seed)):
        expected = [start, *checkpoint.token_ids(text)[1:-1]] if text else [start]
        found = tokenizer.prompt(text)
        if found != expected:
            yield Finding("tokenization", "prompt", f"{text!r}: {found} instead of {expected}")


def _questions(tokenizer: TextTokenizer, checkpoint: Checkpoint, seed: int) -> Iterator[Finding]:
    for text in _texts(seed):
        expected = checkpoint.token_ids(text, encoded=True)
        found = tokenizer.question(text)
        if found != expected:
            where = "question's first token" if found[1:] == expected[1:] else "question"
            yield Finding("tokenization", where, f"{text!r}: {found} instead of {expected}")


def _decoding(tokenizer: TextTokenizer, checkpoint: Checkpoint, seed: int) -> Iterator[Finding]:
    for text in _texts(seed):
        ids = checkpoint.token_ids(text)
        expected = checkpoint.decode(ids)
        found = tokenizer.decode(ids)
        if found != expected:
            yield Finding("tokenization", "decoding", f"{found!r} instead of {expected!r}")
