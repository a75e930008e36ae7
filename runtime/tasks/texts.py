"""Pads questions and texts to what a text net takes."""

from __future__ import annotations

from typing import Sequence, Tuple

import numpy as np

from ..decoding.batching import fixed_length, text_rows
from ..errors import InputError
from ..files.manifests import TextSettings
from ..sessions.session import Session


def padded_texts(
    session: Session, rows: Sequence[Sequence[int]], text: TextSettings
) -> Tuple[np.ndarray, np.ndarray]:
    """Ids and mask ``[batch, tokens]`` for a net: its fixed length, or that of the longest row.

    Raises:
        InputError: a row is longer than the net, or than the checkpoint's positions.
    """
    longest = max(len(row) for row in rows)
    fixed = fixed_length(session.manifest.nets[0], "attention_mask")
    limit = text.maximum_positions if fixed is None else min(fixed, text.maximum_positions)
    if longest > limit:
        raise InputError(
            f"text of {longest} tokens: this artifact takes {limit}; shorten it"
            + ("" if fixed is None else ", or build with larger shapes.text_tokens")
        )
    return text_rows(rows, longest if fixed is None else fixed, text.pad_token_id)
