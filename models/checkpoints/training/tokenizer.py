"""A small BERT WordPiece tokenizer with BLIP's token layout."""

from __future__ import annotations

import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import BertTokenizerFast

SPECIAL_TOKENS: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DECODER_START = "[DEC]"
ENCODER_START = "[ENC]"


def word_pieces(words: Iterable[str]) -> list[str]:
    """Return special tokens, words, then every ASCII character alone and as a continuation.

    The characters make any Latin text tokenise into known pieces instead of ``[UNK]``.
    """
    letters = string.ascii_lowercase + string.digits
    characters = [*letters, *string.punctuation, *(f"##{letter}" for letter in letters)]
    return list(dict.fromkeys([*SPECIAL_TOKENS, *words, *characters]))


def build_tokenizer(pieces: list[str], longest: int) -> Any:
    """Build a lower-casing tokenizer; ``[DEC]`` and ``[ENC]`` get the two ids after ``pieces``.

    ``longest`` is the number of tokens beyond which a text is truncated, where truncation is on.
    """
    tokenizer = BertTokenizerFast(
        vocab={piece: index for index, piece in enumerate(pieces)},
        do_lower_case=True,
        model_max_length=longest,
        additional_special_tokens=[ENCODER_START],
        bos_token=DECODER_START,
    )
    ids = tokenizer.convert_tokens_to_ids([DECODER_START, ENCODER_START])
    if ids != [len(pieces), len(pieces) + 1]:
        raise RuntimeError(f"[DEC], [ENC] have the ids {ids}, expected the two after the pieces")
    return tokenizer


def save_vocabulary(pieces: list[str], folder: Path) -> None:
    """Write ``vocab.txt`` beside ``tokenizer.json``: one piece per line, without [DEC], [ENC]."""
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
