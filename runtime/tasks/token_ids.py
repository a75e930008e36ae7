"""Generation on arrays of pixels and token ids, as HuggingFace's models take and return them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional

import numpy as np

from ..decoding.batching import Timings, as_numpy, chunks, like_input, ragged
from ..errors import InputError
from ..generation.generate import Sequence, padded_sequences

if TYPE_CHECKING:
    from .generating import GeneratingTask


def generate_ids(
    task: "GeneratingTask[Any]",
    pixel_values: Any,
    input_ids: Any,
    attention_mask: Any,
    timings: Optional[Timings],
    generation: Dict[str, Any],
) -> Any:
    """See ``GeneratingTask.generate``."""
    settings = task.settings(**generation)
    pixels = _pixels(task, pixel_values)
    rows: List[List[int]] = [[] for _ in pixels]
    if input_ids is not None:
        mask = None if attention_mask is None else as_numpy(attention_mask)
        rows = ragged(as_numpy(input_ids), mask, task.manifest.text)
    if len(rows) != len(pixels):
        raise InputError(
            f"input_ids: {len(rows)} rows for {len(pixels)} images; pass one per image"
        )
    found: List[List[Sequence]] = []
    for part in chunks(range(len(pixels)), task.images_at_once()):
        picked = slice(part[0], part[-1] + 1)
        found += task.sequences(pixels[picked], rows[picked], settings, timings)
    return like_input(padded_sequences(found, task.manifest.text, settings), pixel_values)


def _pixels(task: "GeneratingTask[Any]", pixel_values: Any) -> np.ndarray:
    """Images from outside as ``[batch, 3, height, width]`` float32."""
    image, pixels = task.manifest.image, as_numpy(pixel_values)
    wanted = (3, image.height, image.width)
    if pixels.shape[1:] != wanted or not len(pixels) or pixels.dtype.kind not in "fiu":
        raise InputError(
            f"pixel_values of shape {list(pixels.shape)} and dtype {pixels.dtype}: pass floats "
            f"[images, {', '.join(map(str, wanted))}] of at least one image"
        )
    pixels = pixels.astype(np.float32, copy=False)
    if not np.isfinite(pixels).all():
        raise InputError("pixel_values: not finite; pass what the image processor makes")
    return pixels
