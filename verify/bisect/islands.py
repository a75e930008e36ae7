"""Layers that should stay in float, from the error that each introduces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from verify.layers.introduced import LayerError, ranked

#: Without a bound: the islands take this share of the error away.
DEFAULT_SHARE = 0.5
#: Operators that compute nothing of their own: an island is the layer that feeds them.
_MOVES = frozenset(("Reshape", "Transpose", "Concat", "Slice", "Flatten", "Identity", "Cast"))


@dataclass(frozen=True)
class Island:
    """One operator to keep in float, as each tool calls it."""

    #: the exported graph's node, which is also OpenVINO's friendly name (NNCF's ignored scope)
    node: str
    #: name of the operator in TPU-MLIR's quantize table
    table_name: str
    introduced: float

    def table_row(self, precision: str = "F16") -> str:
        """A row of TPU-MLIR's ``--quantize_table``."""
        return f"{self.table_name} {precision}"


def islands(errors: Sequence[LayerError], bound: float | None = None) -> tuple[Island, ...]:
    """The fewest operators whose return to float brings the rest below ``bound``.

    Errors of different layers are taken as independent, so their squares add up. Without a bound,
    half of the error must go. Layers within the bound are never islands.
    """
    candidates = [e for e in ranked(errors) if e.operator not in _MOVES and e.introduced > 0.0]
    if bound is not None:
        candidates = [e for e in candidates if not e.introduced <= bound]
        return tuple(_island(error) for error in candidates)
    finite = [e.introduced for e in candidates if math.isfinite(e.introduced)]
    total = math.sqrt(sum(value * value for value in finite))
    chosen: list[LayerError] = []
    left = total * total
    for error in candidates:
        if left <= (DEFAULT_SHARE * total) ** 2:
            break
        chosen.append(error)
        if math.isfinite(error.introduced):
            left -= error.introduced**2
    return tuple(_island(error) for error in chosen)


def _island(error: LayerError) -> Island:
    table_name = error.vendor_name or f"{error.tensor}_{error.operator}"
    return Island(error.node, table_name, error.introduced)
