"""Compares arrays that should hold the same numbers. Knows no model and no target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.tolerances import Tolerance

Array = NDArray[Any]

#: Spread below which an output counts as constant, relative to its scale: a comparison of constants
#: proves nothing.
CONSTANT_SPREAD = 1e-6


@dataclass(frozen=True)
class Comparison:
    """One output of one case, against its reference.

    ``scale`` is the reference's largest absolute value, ``relative_error`` is ``max_abs / scale``,
    ``relative_l2`` the norm of the difference over the reference's norm. ``shape`` is that of the
    whole output, ``elements`` counts the values compared (padding is left out). Where the arrays
    cannot be compared the errors are NaN and ``problems`` says why.
    """

    output: str
    case: str
    shape: tuple[int, ...]
    dtype: str
    elements: int
    finite: bool
    max_abs: float
    scale: float
    relative_error: float
    relative_l2: float
    cosine: float
    problems: tuple[str, ...] = ()


def compare(
    output: str,
    case: str,
    reference: Array,
    actual: Array,
    *,
    rows: slice | None = None,
    dtype: str | None = None,
) -> Comparison:
    """Compares ``actual`` with ``reference``, both of one shape.

    ``rows`` selects the part of axis 1 that holds real tokens: what stands in padded rows is
    nobody's answer, but must be finite, because a masked NaN still reaches the sum. ``dtype`` is
    the numpy dtype name that the contract promises.
    """
    problems = []
    if actual.shape != reference.shape:
        problems.append(f"shape {list(actual.shape)} instead of {list(reference.shape)}")
    if dtype is not None and actual.dtype.name != dtype:
        problems.append(f"dtype {actual.dtype.name} instead of {dtype}")
    reference_finite = bool(np.isfinite(reference).all())
    actual_finite = bool(np.isfinite(actual).all())
    if not actual_finite:
        problems.append(f"{int((~np.isfinite(actual)).sum())} values are not finite")
    if not reference_finite:
        problems.append("the reference itself is not finite")
    compared, other = (a if rows is None else a[:, rows] for a in (reference, actual))
    if compared.size == 0:
        problems.append("nothing to compare")
    errors = (math.nan,) * 5
    if actual.shape == reference.shape and reference_finite and actual_finite and compared.size:
        errors = _errors(compared.astype(np.float64), other.astype(np.float64))
        if _constant(compared):
            problems.append("the reference is constant: comparing it proves nothing")
    max_abs, scale, relative_error, relative_l2, cosine = errors
    return Comparison(
        output=output,
        case=case,
        shape=tuple(actual.shape),
        dtype=actual.dtype.name,
        elements=int(compared.size),
        finite=actual_finite,
        max_abs=max_abs,
        scale=scale,
        relative_error=relative_error,
        relative_l2=relative_l2,
        cosine=cosine,
        problems=tuple(problems),
    )


def _errors(reference: Array, actual: Array) -> tuple[float, float, float, float, float]:
    difference = actual - reference
    max_abs = float(np.abs(difference).max())
    scale = float(np.abs(reference).max())
    norm = float(np.linalg.norm(reference))
    other_norm = float(np.linalg.norm(actual))
    if scale == 0.0:
        return max_abs, scale, math.inf if max_abs else 0.0, math.inf if max_abs else 0.0, math.nan
    product = float(np.vdot(reference, actual))
    # Rounding may leave the cosine of equal arrays a hair above one.
    angle = min(1.0, product / (norm * other_norm)) if other_norm else 0.0
    return max_abs, scale, max_abs / scale, float(np.linalg.norm(difference)) / norm, angle


def cosine(pairs: Sequence[tuple[Array, Array]]) -> float:
    """Cosine of (reference, actual) pairs laid end to end; NaN if either side is zero."""
    reference, actual = (
        np.concatenate([np.asarray(array, dtype=np.float64).reshape(-1) for array in side])
        for side in zip(*pairs, strict=True)
    )
    norms = float(np.linalg.norm(reference)) * float(np.linalg.norm(actual))
    return min(1.0, float(reference @ actual) / norms) if norms else math.nan


def _constant(values: Array) -> bool:
    if values.size == 1:
        return bool(values.reshape(-1)[0] == 0)
    spread = float(values.max()) - float(values.min())
    return spread <= CONSTANT_SPREAD * float(np.abs(values).max())


def same_for_every_case(references: Sequence[Array]) -> bool:
    """Whether an output ignores its input: several cases, all of one shape, all exactly equal."""
    if len(references) < 2 or len({array.shape for array in references}) > 1:
        return False
    return all(np.array_equal(references[0], array) for array in references[1:])


def faults(comparison: Comparison, tolerance: Tolerance) -> list[str]:
    """Every reason why a comparison fails a tolerance; empty when it passes."""
    found = list(comparison.problems)
    if found:
        return found
    # Written so that NaN fails.
    limit = tolerance.max_relative_error
    if not comparison.relative_error <= limit:
        found.append(f"relative error {comparison.relative_error:.2e} exceeds {limit:.1e}")
    if not comparison.cosine >= tolerance.min_cosine:
        found.append(f"cosine {comparison.cosine:.7f} is below {tolerance.min_cosine}")
    return found


def summary(comparisons: Iterable[Comparison]) -> dict[str, Any]:
    """Worst figures over comparisons, as verify.json holds them; NaN becomes null."""
    every = list(comparisons)
    return {
        "shapes": sorted({"x".join(map(str, c.shape)) for c in every}),
        "dtypes": sorted({c.dtype for c in every}),
        "elements": sum(c.elements for c in every),
        "finite": all(c.finite for c in every),
        "max_abs": number(_worst(max, [c.max_abs for c in every])),
        "relative_error": number(_worst(max, [c.relative_error for c in every])),
        "relative_l2": number(_worst(max, [c.relative_l2 for c in every])),
        "cosine": number(_worst(min, [c.cosine for c in every])),
    }


def _worst(choose: Any, values: Sequence[float]) -> float:
    if not values or any(math.isnan(value) for value in values):
        return math.nan
    return float(choose(values))


def number(value: float) -> float | None:
    """A figure for JSON, which has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def needed(comparisons: Iterable[Comparison]) -> dict[str, float | None]:
    """The tightest tolerance that would have passed, rounded to the loose side at two digits."""
    worst = summary(comparisons)
    error, least = worst["relative_error"], worst["cosine"]
    return {
        "max_relative_error": None if error is None else _round_up(error),
        "min_cosine": None if least is None else round(1.0 - _round_up(1.0 - least), 12),
    }


def _round_up(value: float) -> float:
    if value <= 0.0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step) * step:.2g}")
