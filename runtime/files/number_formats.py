"""Number formats of nets' tensors, and the soft-max of their outputs."""

from __future__ import annotations

import numpy as np


def narrowed(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array in a net's dtype and C order; ``bfloat16`` as upper halves in ``uint16``."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
        # Round to nearest, ties to even, as the chips' own converters do.
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (rounded >> np.uint32(16)).astype(np.uint16)
    return np.asarray(array, dtype=np.dtype(dtype), order="C")


def widened(array: np.ndarray) -> np.ndarray:
    """Half-precision arrays as float32; ``uint16`` holds bfloat16 bits."""
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, float32."""
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis, float32."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    logarithms: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logarithms


def log_probability(scores: np.ndarray, index: int) -> float:
    """``log_softmax(scores)[index]`` of one row, without the others."""
    shifted = scores - scores.max()
    return float(shifted[index] - np.log(np.exp(shifted).sum()))
