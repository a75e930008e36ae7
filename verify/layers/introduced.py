"""Error that each layer introduces by itself, apart from what reached it from the layers before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from verify.layers.graph import Array, Arrays, ExportedGraph, Runner, local


@dataclass(frozen=True)
class LayerError:
    """One tensor: what its layer added to the error, and the error that had gathered there.

    Both are norms of differences over the norm of the right values, the worst over all cases;
    ``introduced_max`` relates the largest absolute difference to the largest absolute value.
    Infinite where values stop being finite.
    """

    tensor: str
    layer: str
    node: str
    operator: str
    index: int
    introduced: float
    introduced_max: float
    accumulated: float
    #: all operators of its layer
    operators: frozenset[str] = frozenset()
    #: what the vendor's tool calls the tensor, where it has a name of its own
    vendor_name: str = ""


@dataclass
class _Worst:
    introduced: float = 0.0
    introduced_max: float = 0.0
    accumulated: float = 0.0


@dataclass
class LayerErrors:
    """Gathers the errors of one graph's tensors over several cases.

    ``graph`` recomputes each tensor from the other side's own inputs: the nodes between two tensors
    that both sides have are run under onnxruntime on what the other side had there. What remains
    different was made by these nodes alone. This needs every tensor of the other side, but no way
    of running a part of it, so it serves OpenVINO, chips and the checkpoint alike.
    """

    graph: ExportedGraph
    #: the graph with its constants rounded as the artifact's precision rounds them
    model: onnx.ModelProto | None = None
    vendor_names: Mapping[str, str] = field(default_factory=dict)
    #: where outputs stop being finite: (layer, what), of the first such tensor
    not_finite: list[tuple[str, str]] = field(default_factory=list)
    _worst: dict[str, _Worst] = field(default_factory=dict)
    _wholes: dict[tuple[str, ...], Runner] = field(default_factory=dict)
    _parts: dict[tuple[str, ...], Runner] = field(default_factory=dict)

    def add(self, feeds: Arrays, other: Arrays, *, rows: slice | None = None) -> None:
        """One case: what both sides were fed, and the other side's tensors under our names.

        ``rows`` selects the tokens that count in arrays ``[batch, tokens, ...]`` of the other side
        that are longer than what is compared.
        """
        every = tuple(name for name in self.graph.float_tensors if name in other)
        if not self.not_finite and not all(_finite(other, n) for n in self.graph.outputs):
            first = next(name for name in every if not _finite(other, name))
            self.not_finite.append((self.graph.sites[first].layer, f"{first} is not finite"))
        if every not in self._wholes:
            self._wholes[every] = Runner(self.graph.probed(every, self.model))
        reference = self._wholes[every](feeds)
        # A tensor of another shape holds the same numbers in an order of axes of its own: its
        # neighbours are compared instead. Outputs have no excuse.
        names = tuple(
            name
            for name in every
            if reference[name].shape == other[name].shape or name in self.graph.outputs
        )
        if names not in self._parts:
            self._parts[names] = Runner(self.graph.cut(names, self.model))
        computed = self._parts[names]({**feeds, **{name: other[name] for name in names}})
        for name in names:
            worst = self._worst.setdefault(name, _Worst())
            mine, theirs = computed[local(name)], other[name]
            if rows is not None and mine.ndim == 3 and rows.stop is not None:
                mine, theirs = mine[:, rows], theirs[:, rows]
            norm, largest = difference(mine, theirs)
            worst.introduced = max(worst.introduced, norm)
            worst.introduced_max = max(worst.introduced_max, largest)
            worst.accumulated = max(
                worst.accumulated, difference(reference[name], other[name], propagated=True)[0]
            )

    def result(self) -> list[LayerError]:
        """All tensors in the order of execution."""
        found = []
        for name, worst in self._worst.items():
            site = self.graph.sites[name]
            found.append(
                LayerError(
                    tensor=name,
                    layer=site.layer,
                    node=site.node,
                    operator=site.operator,
                    index=site.index,
                    introduced=worst.introduced,
                    introduced_max=worst.introduced_max,
                    accumulated=worst.accumulated,
                    operators=self.graph.operators(site.layer),
                    vendor_name=self.vendor_names.get(name, ""),
                )
            )
        return sorted(found, key=lambda error: error.index)


def _finite(tensors: Arrays, name: str) -> bool:
    return name not in tensors or bool(np.isfinite(tensors[name]).all())


def difference(right: Array, other: Array, *, propagated: bool = False) -> tuple[float, float]:
    """Norm of the difference over the norm, and largest difference over the largest value.

    Values that are not finite count as infinitely wrong where they should be finite, and as right
    where the same inputs make them not finite here as well.
    """
    if right.shape != other.shape:
        return math.inf, math.inf
    if right.size == 0:
        return 0.0, 0.0
    right, other = right.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(right)
    if not np.isfinite(other[finite]).all():
        return math.inf, math.inf
    if not finite.all():
        if propagated:
            return math.inf, math.inf
        right, other = right[finite], other[finite]
        if right.size == 0:
            return 0.0, 0.0
    norm, largest = float(np.linalg.norm(right)), float(np.abs(right).max())
    delta = other - right
    if norm == 0.0:
        wrong = math.inf if np.any(delta) else 0.0
        return wrong, wrong
    return float(np.linalg.norm(delta)) / norm, float(np.abs(delta).max()) / largest


def ranked(errors: Iterable[LayerError]) -> list[LayerError]:
    """By introduced error, largest first; of equals the one that is computed first."""
    return sorted(errors, key=lambda error: (-error.introduced, error.index))
