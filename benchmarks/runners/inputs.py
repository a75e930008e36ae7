"""The same images and texts for every variant, already preprocessed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Images of the largest batch.
ROWS = 16


@dataclass(frozen=True)
class Inputs:
    """``pixel_values`` ``[16, 3, height, width]`` float32 and ``input_ids`` ``[16, tokens]`` int64.

    Ids are as HuggingFace's processor makes them: [CLS] first, [SEP] last, one length for all rows.
    """

    pixel_values: np.ndarray
    input_ids: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Inputs:
        """Reads ``inputs.npz``."""
        with np.load(path) as stored:
            return cls(stored["pixel_values"], stored["input_ids"])

    def save(self, path: Path) -> None:
        """Writes ``inputs.npz``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            np.savez(stream, pixel_values=self.pixel_values, input_ids=self.input_ids)
