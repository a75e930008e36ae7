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


def build_tokenizer(pieces: list[str]) -> Any:
    """Build a lower-casing tokenizer; ``[DEC]`` and ``[ENC]`` get the two ids after ``pieces``."""
    tokenizer = BertTokenizerFast(
        vocab={piece: index for index, piece in enumerate(pieces)},
        do_lower_case=True,
        model_max_length=512,
        additional_special_tokens=[ENCODER_START],
        bos_token=DECODER_START,
    )
    # The order in which special tokens are added decides their ids: [DEC] first.
    start = tokenizer.convert_tokens_to_ids(DECODER_START)
    if start != len(pieces) or len(tokenizer) != len(pieces) + 2:
        raise RuntimeError(f"[DEC] has id {start}, expected {len(pieces)}")
    return tokenizer


def save_vocabulary(pieces: list[str], folder: Path) -> None:
    """Write ``vocab.txt`` beside ``tokenizer.json``: one piece per line, without [DEC], [ENC]."""
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
