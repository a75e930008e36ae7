"""Which operations of a net become integers: measured group by group, not decided by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from compile.bmodel.integers.mlir import Operation

_LAYER = re.compile(r"layers\.(\d+)")


@dataclass(frozen=True)
class Group:
    """Operations of one role, in all layers or in one."""

    name: str
    operations: frozenset[str]
    multiplications: int


@dataclass(frozen=True)
class Measured:
    """Relative error of a net's outputs, worst output, all samples together."""

    name: str
    error: float


class Measure(Protocol):
    """Measures tables: ``{name: operations that are integers}`` to errors, and remembers them."""

    def __call__(self, wanted: dict[str, frozenset[str]]) -> dict[str, float]:
        """Errors by name."""


@dataclass(frozen=True)
class Plan:
    """What becomes integers, and what was measured on the way."""

    integers: frozenset[str]
    error: float
    #: error of each group alone
    sensitivity: tuple[Measured, ...]
    kept_in_float: tuple[str, ...]


def role(operation: Operation) -> str:
    """What an operation does, whatever its layer."""
    folder = operation.name.strip("/").rpartition("/")[0]
    place = _LAYER.sub("layers.*", folder)
    if operation.kind == "Conv" and any(size > 1 for size in operation.input_shapes[1][2:]):
        return "patch embedding"
    if operation.kind in {"MatMul", "Conv"}:
        if len(operation.constant) > 1 and operation.constant[1]:
            name = _LAYER.sub("layers.*", operation.name.strip("/"))
            return f"linear {place or name}"
        return f"product of activations {place}"
    if operation.kind == "Add":
        # Residuals, and masks on scores, which no eight bits can hold.
        return f"addition {place}"
    return operation.kind


def groups(operations: Sequence[Operation]) -> list[Group]:
    """Operations that compute, by role."""
    return _grouped(operations, role)


def layer_groups(operations: Sequence[Operation], name: str) -> list[Group]:
    """One group per layer of a role."""

    def key(operation: Operation) -> str:
        found = _LAYER.search(operation.name)
        return f"{name}, layer {found[1]}" if found else f"{name}, {operation.name}"

    return _grouped([one for one in operations if role(one) == name], key)


def _grouped(operations: Sequence[Operation], key: Callable[[Operation], str]) -> list[Group]:
    found: dict[str, list[Operation]] = {}
    for one in operations:
        if not one.moves_data and one.kind != "Input":
            found.setdefault(key(one), []).append(one)
    return [
        Group(name, frozenset(o.name for o in members), sum(o.multiplications for o in members))
        for name, members in found.items()
    ]


def search(operations: Sequence[Operation], measure: Measure, maximum_error: float) -> Plan:
    """Makes as much work integer as the error allows.

    Each group is measured alone. Groups are then taken in the order of the error that they cost per
    multiplication saved, as many as stay below the bound together (by bisection, each measured as a
    whole). Of products that no longer fit, single layers are tried the same way. Operations that
    multiply nothing stay in float: they save next to no work, and the chips' tables and divisions
    on integers are not what the measurement rounds.
    """
    every = groups(operations)
    alone = measure({f"only {group.name}": group.operations for group in every})
    error_of = {group.name: alone[f"only {group.name}"] for group in every}
    products = [group for group in every if group.multiplications]

    def cost(group: Group, errors: dict[str, float]) -> float:
        return errors[group.name] ** 2 / max(group.multiplications, 1)

    products.sort(key=lambda group: cost(group, error_of))
    taken, error = _longest(products, frozenset(), 0.0, measure, maximum_error)
    left = [group for group in products if not group.operations <= taken]
    single: dict[str, float] = {}
    layers = [layer for group in left for layer in layer_groups(operations, group.name)]
    if len(layers) > len(left):
        found = measure({f"only {layer.name}": layer.operations for layer in layers})
        single = {layer.name: found[f"only {layer.name}"] for layer in layers}
        layers.sort(key=lambda layer: cost(layer, single))
        taken, error = _longest(layers, taken, error, measure, maximum_error)
    sensitivity = sorted((error_of | single).items(), key=lambda pair: -pair[1])
    return Plan(
        integers=taken,
        error=error,
        sensitivity=tuple(Measured(name, value) for name, value in sensitivity),
        kept_in_float=tuple(g.name for g in every if not g.operations <= taken),
    )


def _longest(
    ordered: Sequence[Group],
    base: frozenset[str],
    base_error: float,
    measure: Measure,
    maximum_error: float,
) -> tuple[frozenset[str], float]:
    """``base`` with the longest beginning of ``ordered`` whose measured error fits."""
    low, high = 0, len(ordered)
    best, error = base, base_error
    while low < high:
        middle = (low + high + 1) // 2
        tried = base.union(*(group.operations for group in ordered[:middle]))
        name = f"{middle} of {ordered[0].name} ... on {len(base)}"
        found = measure({name: tried})[name]
        if found <= maximum_error:
            low, best, error = middle, tried, found
        else:
            high = middle - 1
    return best, error


def table_text(operations: Sequence[Operation], integers: frozenset[str], islands: str) -> str:
    """The vendor's quantize table: every operation that stays in float; others are integers.

    Operations that only move data take the type of what they are given, or of what takes them.
    """
    return "".join(f"{name} {islands}\n" for name in float_operations(operations, integers))


def float_operations(operations: Sequence[Operation], integers: frozenset[str]) -> list[str]:
    """Names of all operations that stay in float, in the net's order."""
    integer = set(integers)
    takers: dict[str, list[str]] = {}
    for one in operations:
        for name in one.inputs:
            takers.setdefault(name, []).append(one.name)
        if one.reorders and one.inputs and one.inputs[0] in integer:
            integer.add(one.name)
    # In front of integers a reordering moves integers, too: a quarter of the bytes.
    for one in reversed(operations):
        taken_by = takers.get(one.name, [])
        if one.reorders and len(one.inputs) == 1 and taken_by and integer.issuperset(taken_by):
            integer.add(one.name)
    return [o.name for o in operations if o.kind != "Input" and o.name not in integer]
