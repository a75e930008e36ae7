"""Words to token ids and back, with the checkpoint's ``tokenizer.json``."""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional, Sequence

from ..errors import ArtifactError, BackendError, InputError
from ..files.manifests import TextSettings

#: Longer texts are refused before tokenisation; no net takes more than 512 tokens.
MAXIMUM_CHARACTERS = 20_000


class TextTokenizer:
    """The checkpoint's tokenizer. Safe to share between threads."""

    def __init__(self, path: Path, settings: TextSettings) -> None:
        """Loads ``tokenizer.json``.

        Raises:
            ArtifactError: missing or damaged.
            BackendError: the ``tokenizers`` package is missing.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise BackendError("tokenizers is not installed; pip install tokenizers") from None
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise ArtifactError(f"{path}: not a tokenizer ({reason}); rebuild it") from None
        # Lengths are decided by the net in use, not by what was saved with the tokenizer.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.settings = settings

    def encode(self, text: str) -> List[int]:
        """Token ids with [CLS] first and [SEP] last.

        Raises:
            InputError: not a text, or far too long.
        """
        if not isinstance(text, str):
            raise InputError(f"text of type {type(text).__name__}: pass a string")
        if len(text) > MAXIMUM_CHARACTERS:
            raise InputError(f"text of {len(text)} characters: at most {MAXIMUM_CHARACTERS}")
        try:
            ids: List[int] = self._tokenizer.encode(text).ids
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else "cannot be tokenised"
            raise InputError(f"text: {reason}; pass plain Unicode") from None
        return ids

    def prompt(self, text: Optional[str]) -> List[int]:
        """Token ids of a caption prompt: start token first, no final [SEP]."""
        if not text:
            return [self.settings.start_token_id]
        ids = self.encode(text)
        return [self.settings.start_token_id, *ids[1:-1]]

    def question(self, text: str) -> List[int]:
        """Token ids of a question or text, with the first token that the artifact was built for."""
        ids = self.encode(text)
        if self.settings.question_start == "enc":
            if self.settings.enc_token_id is None:
                raise ArtifactError(
                    "manifest.json: text.enc_token_id: needed by question_start enc"
                )
            ids = [self.settings.enc_token_id, *ids[1:]]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
        return text
