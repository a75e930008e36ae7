"""Tolerances: one table, configs/tolerances.yaml, each row with its reason (docs/tolerances.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import Field, model_validator

from configs.errors import ConfigError
from configs.layout import CONFIGS_FOLDER
from configs.load import load_target, read_yaml, shown, validate
from configs.precisions import PRECISIONS, Arithmetic, Backend, Precision, Storage
from configs.schema import Component, Float32, SophonTarget, Strict

Gap = Literal[
    "hf_vs_wrapper",
    "wrapper_vs_onnxruntime",
    "checkpoint_vs_host",
    "search_rules",
    "checkpoint_layers",
    "onnxruntime_vs_target",
    "target_layers",
    "target_constants",
    "combined_file",
    "tokens",
]
#: Figures that apply wherever they are asked for.
LimitName = Literal[
    "rewritten_graph",
    "batch_scores",
    "integer_weight_steps",
    "integer_step_size",
    "integer_step_size_of_convolutions",
    "integer_range_steps",
    "bisect_own_graph",
    "bisect_own_graph_of_integers",
    "bisect_vanished_error",
    "bisect_vanished_ratio",
    "bisect_scores",
]

TOLERANCES_FILE = CONFIGS_FOLDER / "tolerances.yaml"
#: A larger bound stops garbage and checks nothing: its row must say what decides instead.
LARGEST_CHECK = 0.1

PositiveFloat = Annotated[float, Field(gt=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Reason = Annotated[str, Field(min_length=10)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


class Applies(Strict):
    """What a row covers; an absent key covers everything. Never a target's name."""

    gaps: tuple[Gap, ...] | None = None
    backends: tuple[Backend, ...] | None = None
    #: number format of the stored weights
    weights: tuple[Storage, ...] | None = None
    #: number format that the device computes in, which need not be that of the weights
    arithmetic: tuple[Arithmetic, ...] | None = None
    components: tuple[Component, ...] | None = None
    #: what the chip's file says of it (configs/targets)
    float32: tuple[Float32, ...] | None = None
    scale_per_channel: tuple[bool, ...] | None = None

    @property
    def specificity(self) -> int:
        """How many keys are given: of two rows that apply, the one with more is used."""
        return sum(allowed is not None for _, allowed in self)

    def covers(self, case: Mapping[str, object]) -> bool:
        """Whether a row applies to a case, which has one value per key."""
        return all(allowed is None or case[key] in allowed for key, allowed in self)

    def overlaps(self, other: Applies) -> bool:
        """Whether there may be a case that both cover."""
        pairs = zip(dict(self).values(), dict(other).values(), strict=True)
        return all(
            mine is None or theirs is None or set(mine) & set(theirs) for mine, theirs in pairs
        )


class Row(Strict):
    """What every row has."""

    name: Name
    #: why this much and no more
    reason: Reason


class Bound(Row):
    """A row for some cases."""

    applies: Applies = Applies()
    #: what finds a fault where the bound is too wide for that: the gate on answers, or a comparison
    #: of the artifact with its own integers
    decided_by: Literal["answers", "integers"] | None = None

    @model_validator(mode="after")
    def _wide_bounds_say_what_decides(self) -> Self:
        for key, value in self:
            if key.startswith("max_") and value > LARGEST_CHECK and self.decided_by is None:
                raise ValueError(
                    f"{key}: {value:g} of a scale checks nothing; tighten it or give decided_by"
                )
        return self


class Tolerance(Bound):
    """Row for a comparison of arrays."""

    #: largest absolute difference over the reference's largest absolute value
    max_relative_error: PositiveFloat
    min_cosine: Annotated[float, Field(gt=0.0, le=1.0)]


class LayerTolerance(Bound):
    """Row for the error that one layer introduces by itself."""

    #: norm of what the layer adds to the error over the norm of its right output
    max_introduced_error: PositiveFloat
    #: wider, for layers with an ONNX operator that the device approximates
    by_operator: dict[str, PositiveFloat] = Field(default_factory=dict)

    def bound(self, operators: Collection[str]) -> float:
        """The bound of a layer that is made of these operators."""
        wider = [limit for name, limit in self.by_operator.items() if name in operators]
        return max([self.max_introduced_error, *wider])


class ScoreTolerance(Bound):
    """Row for match scores: probabilities and contrastive cosines, absolute differences."""

    max_probability_error: PositiveFloat
    max_similarity_error: PositiveFloat


class AnswerTolerance(Bound):
    """Row for the share of equal answers where a pipeline file says none (``verify.gates``)."""

    min_agreement: Share


class Limit(Row):
    """One figure for one place."""

    name: LimitName
    limit: PositiveFloat


@dataclass(frozen=True)
class Gate:
    """Least share of whole answers that must equal the checkpoint's, and where that comes from."""

    min_agreement: float
    source: str


class Tolerances(Strict):
    """The whole table. Of the rows that apply, the one with the most keys is used."""

    components: Annotated[tuple[Tolerance, ...], Field(min_length=1)]
    scores: Annotated[tuple[ScoreTolerance, ...], Field(min_length=1)]
    answers: Annotated[tuple[AnswerTolerance, ...], Field(min_length=1)]
    layers: Annotated[tuple[LayerTolerance, ...], Field(min_length=1)]
    limits: tuple[Limit, ...]

    @model_validator(mode="after")
    def _one_row_decides(self) -> Self:
        """Names are unique, every limit is there, and no two rows are equally specific."""
        missing = sorted({*get_args(LimitName)} - {row.name for row in self.limits})
        if missing:
            raise ValueError(f"limits: {', '.join(missing)}: missing; add it with its reason")
        for key, rows in self:
            for one, other in combinations(rows, 2):
                if one.name == other.name:
                    raise ValueError(f"{key}.{one.name}: two rows of this name; rename one")
                if key == "limits" or one.applies.specificity != other.applies.specificity:
                    continue
                if one.applies.overlaps(other.applies):
                    raise ValueError(
                        f"{key}: {one.name} and {other.name} are equally specific and may both "
                        "apply; give one of them another key"
                    )
        return self

    def layer(
        self,
        *,
        gap: Gap,
        target: str,
        precision: Precision,
        arithmetic: Arithmetic,
        component: Component,
    ) -> LayerTolerance:
        """The row for the layers of one component.

        Raises:
            ConfigError: no row applies.
        """
        return _row("layers", self.layers, gap, target, precision, arithmetic, component)

    def component(
        self,
        *,
        gap: Gap,
        target: str,
        precision: Precision,
        arithmetic: Arithmetic,
        component: Component,
    ) -> Tolerance:
        """The row for one component comparison.

        Raises:
            ConfigError: no row applies.
        """
        return _row("components", self.components, gap, target, precision, arithmetic, component)

    def score(self, *, target: str, precision: Precision, arithmetic: Arithmetic) -> ScoreTolerance:
        """The row for match scores.

        Raises:
            ConfigError: no row applies.
        """
        return _row("scores", self.scores, "tokens", target, precision, arithmetic)

    def gate(self, *, target: str, precision: Precision, arithmetic: Arithmetic) -> Gate:
        """The gate of answers for which a pipeline file has none.

        Raises:
            ConfigError: no row applies.
        """
        row = _row("answers", self.answers, "tokens", target, precision, arithmetic)
        return Gate(row.min_agreement, source(row))

    def limit(self, name: LimitName) -> float:
        """A figure by its name."""
        return next(row.limit for row in self.limits if row.name == name)


def judged_as(target: str) -> dict[str, object]:
    """What of a target's file decides its tolerances; ``onnx`` is no target and has no backend."""
    described = load_target(target) if target != "onnx" else None
    chip = described if isinstance(described, SophonTarget) else None
    return {
        "backends": described.backend if described else None,
        "float32": chip.float32 if chip else None,
        "scale_per_channel": chip.scale_per_channel if chip else None,
    }


_Bound = TypeVar("_Bound", bound=Bound)


def _row(
    table: str,
    rows: tuple[_Bound, ...],
    gap: Gap,
    target: str,
    precision: Precision,
    arithmetic: Arithmetic,
    component: Component | None = None,
) -> _Bound:
    """The most specific row that applies."""
    stored = PRECISIONS[precision]
    case = {
        "gaps": gap,
        "weights": stored.weights,
        # Integers stay integers, whatever a device's floats are.
        "arithmetic": "int8" if stored.calibrated else arithmetic,
        "components": component,
        **judged_as(target),
    }
    fitting = [row for row in rows if row.applies.covers(case)]
    if not fitting:
        raise ConfigError(
            f"{shown(TOLERANCES_FILE)}: {table}: no row applies to {target} "
            f"({', '.join(f'{key} {value}' for key, value in case.items() if value is not None)}); "
            "add one with its reason"
        )
    return max(fitting, key=lambda row: row.applies.specificity)


def source(row: Row) -> str:
    """Where a tolerance comes from, as reports show it."""
    table = {
        Tolerance: "components",
        ScoreTolerance: "scores",
        AnswerTolerance: "answers",
        LayerTolerance: "layers",
        Limit: "limits",
    }[type(row)]
    return f"configs/tolerances.yaml: {table}.{row.name}"


def record(row: Bound) -> dict[str, Any]:
    """A row as a verdict holds it: its bounds, what decides beside them, source and reason."""
    bounds = row.model_dump(exclude={"name", "applies"}, exclude_none=True)
    return {**bounds, "source": source(row)}


@cache
def load_tolerances(path: Path = TOLERANCES_FILE) -> Tolerances:
    """Loads and checks the table.

    Raises:
        ConfigError: missing or invalid file.
    """
    return validate(Tolerances, read_yaml(path), path)


def tolerances_digest(path: Path = TOLERANCES_FILE) -> str:
    """Digest of the table: part of every check's key."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
