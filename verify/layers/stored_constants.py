"""Whether every exported constant is in a compiled file, wherever the compiler put it.

A chip's compiler tiles, transposes and concatenates weights, so no address is known beforehand.
But along one axis of a constant, neighbours stay together at some distance in the file. Each run of
neighbours, 64 bits long, is looked up among all such runs of the file; by chance a run is found
once in 2^64 / (values of the file). A weight off by less than half precision can show in any answer
is found missing here, and the file need not be run for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from configs.precisions import PRECISIONS

Array = NDArray[Any]
Format = Literal["float32", "float16", "bfloat16"]

#: What a chip's file may hold the constants of a float artifact in; integers are not looked up.
_STORED: Mapping[str, tuple[Format, ...]] = {
    "f32": ("float32",),
    "f16": ("float16", "float32"),
    "bf16": ("bfloat16", "float32"),
}
FORMATS: Mapping[str, tuple[Format, ...]] = {
    name: _STORED[one.weights] for name, one in PRECISIONS.items() if one.weights in _STORED
}
#: How far neighbours of a constant are apart in a file, in values: next to each other, or in tiles.
DISTANCES = (1, 2, 4, 8, 16, 32, 64, 128)
#: Smaller constants are folded into others, and constants of few values are found anywhere.
FEWEST_VALUES, FEWEST_DISTINCT = 16, 9
#: Runs that are looked up per constant and axis: all of a small graph's, an even sample of a large
#: one's.
MOST_RUNS, MOST_RUNS_OF_LARGE = 1 << 20, 1 << 13
#: Values of all constants together, from which on a graph is large.
LARGE_GRAPH = 1 << 24
#: Values of a file that are looked at together: 8 bytes each.
CHUNK = 1 << 22
_RUN_BITS = 64
_TABLE_BITS = 24


@dataclass(frozen=True)
class Stored:
    """Where a constant was found best."""

    name: str
    #: part of its values that stand in a run that the file holds
    share: float
    format: str
    axis: int
    distance: int
    file: str = ""


def find_constants(
    constants: Mapping[str, Array], files: Iterable[Path], formats: Sequence[Format]
) -> list[Stored]:
    """How much of each float32 constant is in any of the files, in one of the number formats.

    Constants that are too small or have too few different values to be recognised are left out.
    """
    best = {
        name: Stored(name, 0.0, "", 0, 0)
        for name, array in constants.items()
        if array.size >= FEWEST_VALUES and np.unique(array).size >= FEWEST_DISTINCT
    }
    blobs = [path.read_bytes() for path in files]
    values = {kind: [_values(blob, kind) for blob in blobs] for kind in formats}
    # Most stand there as they are: looked up without overlaps first, the rest in every way.
    ways = [(kind, 1, True) for kind in formats]
    ways += [(kind, distance, False) for kind in formats for distance in DISTANCES]
    for kind, distance, plain in ways:
        wanted = {name: constants[name] for name, found in best.items() if found.share < 1.0}
        for stored in _looked_up(wanted, values[kind], kind, distance, plain=plain):
            if stored.share > best[stored.name].share:
                best[stored.name] = stored
    return list(best.values())


def _looked_up(
    constants: Mapping[str, Array], values: list[Array], kind: Format, distance: int, *, plain: bool
) -> Iterator[Stored]:
    large = sum(array.size for array in constants.values()) > LARGE_GRAPH
    most = MOST_RUNS_OF_LARGE if large else MOST_RUNS
    queries = [
        (name, axis, _axis_runs(array, axis, kind, most, plain=plain))
        for name, array in constants.items()
        for axis in ([array.ndim - 1] if plain else range(array.ndim))
        if array.shape[axis] >= _length(kind)
    ]
    if not queries:
        return
    every = np.unique(np.concatenate([runs.ravel() for _, _, runs in queries]))
    present = np.zeros(every.size, dtype=bool)
    # Few runs of a file are asked for: a coarse table sorts the others out.
    asked = np.zeros(1 << _TABLE_BITS, dtype=bool)
    asked[_slot(every)] = True
    for blob in values:
        for runs in _file_runs(blob, kind, distance):
            runs = runs[asked[_slot(runs)]]
            found = np.searchsorted(every, runs)
            found[found == every.size] = 0
            present[found[every[found] == runs]] = True
    for name, axis, runs in queries:
        hit = present[np.searchsorted(every, runs)]
        share = float(hit.mean()) if plain else _covered(hit, _length(kind))
        yield Stored(name, share if not plain or hit.all() else 0.0, kind, axis, distance)


def _slot(runs: Array) -> Array:
    """Place in the coarse table: the upper bits of a product with an odd number."""
    with np.errstate(over="ignore"):
        return (runs * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(_RUN_BITS - _TABLE_BITS)


def _length(kind: Format) -> int:
    return _RUN_BITS // (32 if kind == "float32" else 16)


def bits(array: Array, kind: Format) -> Array:
    """The bit pattern of each value once it is rounded, to nearest with ties to even."""
    array = np.ascontiguousarray(array, dtype=np.float32)
    if kind == "float32":
        return array.view(np.uint32)
    if kind == "float16":
        with np.errstate(over="ignore"):
            return array.astype(np.float16).view(np.uint16)
    bits = array.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _values(blob: bytes, kind: Format) -> Array:
    dtype = np.dtype(np.uint32 if kind == "float32" else np.uint16)
    return np.frombuffer(blob, dtype, count=len(blob) // dtype.itemsize)


def _joined(parts: list[Array]) -> Array:
    width = _RUN_BITS // len(parts)
    runs = np.zeros(parts[0].shape, dtype=np.uint64)
    for part in parts:
        runs = (runs << np.uint64(width)) | part.astype(np.uint64)
    return runs


def _axis_runs(array: Array, axis: int, kind: Format, most: int, *, plain: bool) -> Array:
    """Runs of neighbours along an axis ``[lines, starts]``; plain ones cover each value once."""
    along = np.moveaxis(bits(array, kind), axis, -1)
    lines = along.reshape(-1, along.shape[-1])
    length = _length(kind)
    last = lines.shape[1] - length
    starts = np.append(np.arange(0, last, length), last) if plain else np.arange(last + 1)
    if lines.shape[0] * starts.size > most:
        lines = lines[:: -(-lines.shape[0] * starts.size // most)]
    return _joined([lines[:, starts + i] for i in range(length)])


def _file_runs(values: Array, kind: Format, distance: int) -> Iterator[Array]:
    reach = (_length(kind) - 1) * distance
    for start in range(0, max(0, values.size - reach), CHUNK):
        part = values[start : start + CHUNK + reach]
        count = part.size - reach
        yield _joined([part[i * distance : i * distance + count] for i in range(_length(kind))])


def _covered(hit: Array, length: int) -> float:
    """Part of the values that belong to a run that was found."""
    covered = np.zeros((hit.shape[0], hit.shape[1] + length - 1), dtype=bool)
    for offset in range(length):
        covered[:, offset : offset + hit.shape[1]] |= hit
    return float(covered.mean())
