"""A BModel's weights against those that its own commands compile, each at its place.

The compiler is deterministic but for a time stamp: compiled again, a net has the same bytes of
weights in the same order. Where one weight's bytes differ, its layer is known by the name that the
compiler gave it, also where right values stand in the wrong places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from verify.layers.graph import ExportedGraph

_WEIGHTS = "*_addressed_*_weight.npz"
#: Shorter weights are found anywhere.
FEWEST_BYTES = 64
#: Weights that must lie where they are expected before a single one is called wrong.
LEAST_SHARE = 0.5


def misplaced_weights(
    compiled: Path, folder: Path, artifact: Path, graph: ExportedGraph
) -> Iterator[tuple[str, str]]:
    """Layers whose weights differ from the ones just compiled.

    A file of several nets holds the same weights further on; how far, most of them agree upon.

    Args:
        compiled: the BModel that the build's own commands make.
        folder: where the compiler left the weights by name.
        artifact: the BModel in question.
        graph: what was exported.

    Yields:
        layer, and what is wrong there.
    """
    arrays = sorted(folder.glob(_WEIGHTS))
    if not arrays:
        return
    right, found = compiled.read_bytes(), artifact.read_bytes()
    places: dict[str, tuple[int, bytes]] = {}
    shifts: Counter[int] = Counter()
    with np.load(arrays[0], allow_pickle=False) as weights:
        for name in weights.files:
            data = weights[name].tobytes()
            at = right.find(data) if len(data) >= FEWEST_BYTES else -1
            if at < 0:
                continue
            places[name] = (at, data)
            there = found.find(data)
            if there >= 0:
                shifts[there - at] += 1
    if not shifts:
        return
    shift, agreed = shifts.most_common(1)[0]
    if agreed < LEAST_SHARE * len(places):
        return
    for name, (at, data) in places.items():
        mine = found[at + shift : at + shift + len(data)]
        if mine != data:
            count = min(len(mine), len(data))
            pair = (np.frombuffer(part[:count], np.uint8) for part in (mine, data))
            share = float(np.mean(np.not_equal(*pair))) if count else 1.0
            what = f"{share:.1%} of the bytes of {name} are not what its own commands compile"
            yield layer_of(name, graph), what


def layer_of(name: str, graph: ExportedGraph) -> str:
    """The layer that a weight belongs to; the compiler names weights after tensors."""
    for tensor in sorted(graph.sites, key=len, reverse=True):
        if name.startswith(tensor):
            return graph.sites[tensor].layer
    for constant in sorted(graph.initializers, key=len, reverse=True):
        if name.startswith(constant) and "." in constant:
            return str(constant).rsplit(".", 1)[0]
    return name
