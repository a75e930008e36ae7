"""Whether an IR's float constants are the exported ones: bit by bit, every row of every table.

Layers are compared on what a few calls read; a table's other rows are seen here only. Names tell
which constant is which. What a rewrite made anew has no name and is found by its bits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from hashlib import sha256
from typing import Any

import numpy as np
from onnx import numpy_helper

from runtime.files.manifests import ComponentManifest
from verify.layers.graph import Array, ExportedGraph, constants
from verify.layers.half_precision_ir import moved_factors

Fault = tuple[str, str]

#: Single numbers that a converter makes by itself: masks of its own, limits of a clip.
_HALF = float(np.finfo(np.float16).max)
_NEUTRAL = (0.0, 1.0, -np.inf, np.inf, _HALF, float(np.finfo(np.float32).max))
#: Stands for the layer of a constant that the converter gave no name.
NOWHERE = "graph"
_COMPRESSED = "_compressed"
_OUTPUT = "_output_0"


def constant_faults(
    ir: Any,
    manifest: ComponentManifest,
    graph: ExportedGraph,
    others: Iterable[ExportedGraph] = (),
    integers: Collection[str] | None = None,
) -> list[Fault]:
    """(constant, what is wrong with it).

    Args:
        ir: the IR as OpenVINO reads it.
        manifest: the IR's, which says what was moved into weights.
        graph: the exported graph.
        others: graphs of the other components that the IR computes.
        integers: exported constants that the IR holds as integers, judged elsewhere; None in a
            float IR, where no other constants may be.
    """
    stored = _Stored(ir)
    exported = _Exported(graph, manifest)
    faults = [
        fault
        for name in exported.arrays
        if integers is None or name not in integers
        for fault in _one(name, exported, stored)
    ]
    if integers is None:
        every = [exported, *(_Exported(other, manifest) for other in others)]
        faults += _foreign(stored, every)
    return faults


class _Stored:
    """Float constants of an IR by name and by their bits, in the number formats of its file."""

    def __init__(self, ir: Any) -> None:
        self.arrays: dict[str, Array] = {}
        for operation in ir.get_ordered_ops():
            if operation.get_type_name() == "Constant" and operation.get_element_type().is_real():
                name = operation.get_friendly_name().removesuffix(_COMPRESSED)
                # A second one of the same name has to be explained by its bits.
                unique = name if name not in self.arrays else f"{name}#{len(self.arrays)}"
                self.arrays[unique] = np.array(operation.get_data())
        self.kinds = {array.dtype for array in self.arrays.values()}
        self._bits = {_bits(array) for array in self.arrays.values()}

    def named(self, exported: str) -> Array | None:
        """The constant with an exported one's name."""
        found = self.arrays.get(exported)
        return self.arrays.get(exported.removesuffix(_OUTPUT)) if found is None else found

    def hold(self, right: Array) -> bool:
        """Whether one of them is this array; of a table, its first rows are enough."""
        if any(_bits(_rounded(right, kind)) in self._bits for kind in self.kinds):
            return True
        if right.ndim < 2:
            return False
        rows = right.reshape(-1, right.shape[-1])
        return any(
            array.ndim > 1
            and array.shape[-1] == rows.shape[1]
            and array.size < rows.size
            and np.array_equal(
                array.ravel(), _rounded(rows[: array.size // rows.shape[1]], array.dtype).ravel()
            )
            for array in self.arrays.values()
        )


class _Exported:
    """Float constants of an exported graph; ``scaled`` are those with a factor in them."""

    def __init__(self, graph: ExportedGraph, manifest: ComponentManifest) -> None:
        nodes = graph.model.graph.node
        used = {name for node in nodes for name in node.input}
        every = constants(graph.model)
        arrays = {t.name: numpy_helper.to_array(t) for t in every if t.name in used}
        self.arrays = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
        factors = moved_factors(manifest, graph)
        self.factors = set(factors.values())
        self.scaled: dict[str, Array] = {}
        for node in nodes:
            # A bias is added to the product itself.
            products = [name for name in (*node.output, *node.input) if name in factors]
            if products and node.op_type in ("MatMul", "Add"):
                factor = np.float32(factors[products[0]])
                moved = {n: self.arrays[n] * factor for n in node.input if n in self.arrays}
                self.scaled |= moved


def _one(name: str, exported: _Exported, stored: _Stored) -> Iterator[Fault]:
    right = exported.arrays[name]
    found = stored.named(name)
    if found is not None and name not in exported.scaled:
        yield from _different(name, right, found)
    elif right.size > 1 and not stored.hold(exported.scaled.get(name, right)):
        yield name, "none of the IR's constants holds it"


def _different(name: str, right: Array, found: Array) -> Iterator[Fault]:
    if found.size != right.size:
        yield name, f"shape {list(found.shape)} instead of {list(right.shape)}"
        return
    wanted = _rounded(right, found.dtype).reshape(found.shape)
    wrong = ~((wanted == found) | (np.isnan(wanted) & np.isnan(found)))
    if not wrong.any():
        return
    where = ""
    if right.ndim > 1:
        rows = np.flatnonzero(wrong.reshape(-1, right.shape[-1]).any(axis=1))
        more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
        where = f", in row {', '.join(map(str, rows[:4]))}{more}"
    elif right.size == 1:
        where = f": {float(found.ravel()[0]):g} instead of {float(wanted.ravel()[0]):g}"
    yield name, f"{wrong.mean():.2%} of its values are not the exported ones{where}"


def _foreign(stored: _Stored, exported: Collection[_Exported]) -> Iterator[Fault]:
    """Constants that no exported one explains."""
    arrays = [a for one in exported for a in (*one.arrays.values(), *one.scaled.values())]
    names = {name for one in exported for name in one.arrays}
    names |= {name.removesuffix(_OUTPUT) for name in names}
    explained = {_bits(_rounded(a, kind)) for a in arrays for kind in stored.kinds if a.size > 1}
    numbers: list[float] = [*_NEUTRAL]
    numbers += [*(float(a.ravel()[0]) for a in arrays if a.size == 1)]
    numbers += [factor for one in exported for factor in one.factors]
    for name, array in stored.arrays.items():
        if name in names:
            continue
        if array.size == 1:
            value = float(array.ravel()[0])
            if not any(value in (n, float(_rounded(np.array(n), array.dtype))) for n in numbers):
                yield _layer(name), f"its constant {value:g} ({name}) is not in the exported graph"
        elif _bits(array) not in explained:
            what = f"a constant of {list(array.shape)} ({name}) is not in the exported graph"
            yield _layer(name), what


def _layer(name: str) -> str:
    """The module that a constant is in, by the path in its name."""
    path = [part for part in name.split("/")[:-1] if part]
    return ".".join(path) or NOWHERE


def _rounded(right: Any, kind: np.dtype[Any]) -> Array:
    """As a file stores it: what leaves half precision's range is cut off at its end."""
    limited = np.clip(right, -_HALF, _HALF) if kind == np.float16 else np.asarray(right)
    with np.errstate(over="ignore"):
        rounded: Array = limited.astype(kind)
    return rounded


def _bits(array: Array) -> tuple[str, bytes]:
    return array.dtype.str, sha256(np.ascontiguousarray(array).tobytes()).digest()
