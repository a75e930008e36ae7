"""Tolerances: one table, configs/tolerances.yaml, each row with its reason (docs/tolerances.md)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from configs.errors import ConfigError
from configs.layout import CONFIGS_FOLDER
from configs.load import read_yaml, shown, validate
from configs.schema import Component, Precision, Strict

Gap = Literal[
    "hf_vs_wrapper",
    "wrapper_vs_onnxruntime",
    "checkpoint_vs_host",
    "checkpoint_layers",
    "onnxruntime_vs_target",
    "target_layers",
    "target_constants",
    "combined_file",
    "tokens",
]

TOLERANCES_FILE = CONFIGS_FOLDER / "tolerances.yaml"

PositiveFloat = Annotated[float, Field(gt=0.0)]
Reason = Annotated[str, Field(min_length=10)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


class Applies(Strict):
    """What a row covers; an absent key covers everything."""

    gaps: tuple[Gap, ...] | None = None
    targets: tuple[str, ...] | None = None
    #: precision the weights are stored in
    precisions: tuple[Precision, ...] | None = None
    #: precision the device computes in, which need not be that of the weights
    arithmetic: tuple[Precision, ...] | None = None
    components: tuple[Component, ...] | None = None


class Row(Strict):
    """What every row has."""

    name: Name
    applies: Applies = Applies()
    #: why this much and no more
    reason: Reason


class Tolerance(Row):
    """Row for a comparison of arrays."""

    #: largest absolute difference over the reference's largest absolute value
    max_relative_error: PositiveFloat
    min_cosine: Annotated[float, Field(gt=0.0, le=1.0)]


class LayerTolerance(Row):
    """Row for the error that one layer introduces by itself."""

    #: norm of what the layer adds to the error over the norm of its right output
    max_introduced_error: PositiveFloat


class ScoreTolerance(Row):
    """Row for match scores: probabilities and contrastive cosines, absolute differences."""

    max_probability_error: PositiveFloat
    max_similarity_error: PositiveFloat


class AnswerTolerance(Row):
    """Row that lowers a pipeline's ``verify.tokens`` gate where arithmetic is rougher."""

    minimum_exact: Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True)
class Gate:
    """Least share of whole answers that must equal the checkpoint's, and where that comes from."""

    minimum_exact: float
    source: str


class Tolerances(Strict):
    """The whole table. The first row that applies is used, so special rows stand first."""

    components: Annotated[tuple[Tolerance, ...], Field(min_length=1)]
    scores: Annotated[tuple[ScoreTolerance, ...], Field(min_length=1)]
    answers: tuple[AnswerTolerance, ...] = ()
    layers: tuple[LayerTolerance, ...] = ()

    def layer(
        self,
        *,
        gap: Gap,
        target: str,
        precision: Precision,
        arithmetic: Precision,
        component: Component,
    ) -> LayerTolerance:
        """The row for the layers of one component.

        Raises:
            ConfigError: no row applies.
        """
        key = (gap, target, precision, arithmetic)
        return _named("layers", _first(self.layers, *key, component), *key)

    def component(
        self,
        *,
        gap: Gap,
        target: str,
        precision: Precision,
        arithmetic: Precision,
        component: Component,
    ) -> Tolerance:
        """The row for one component comparison.

        Raises:
            ConfigError: no row applies.
        """
        key = (gap, target, precision, arithmetic)
        return _named("components", _first(self.components, *key, component), *key)

    def score(self, *, target: str, precision: Precision, arithmetic: Precision) -> ScoreTolerance:
        """The row for match scores.

        Raises:
            ConfigError: no row applies.
        """
        key: _Key = ("tokens", target, precision, arithmetic)
        return _named("scores", _first(self.scores, *key), *key)

    def gate(
        self, asked: Gate, *, target: str, precision: Precision, arithmetic: Precision
    ) -> Gate:
        """The gate of a pipeline file, or the row that overrides it if that asks for less."""
        row = _first(self.answers, "tokens", target, precision, arithmetic)
        if row is not None and row.minimum_exact < asked.minimum_exact:
            return Gate(row.minimum_exact, source(row))
        return asked


_Row = TypeVar("_Row", bound=Row)
_Key = tuple[Gap, str, Precision, Precision]


def _first(
    rows: tuple[_Row, ...],
    gap: Gap,
    target: str,
    precision: Precision,
    arithmetic: Precision,
    component: Component | None = None,
) -> _Row | None:
    """The first row that applies; without a component, rows for some components do not matter."""
    for row in rows:
        applies = row.applies
        pairs: tuple[tuple[tuple[str, ...] | None, str | None], ...] = (
            (applies.gaps, gap),
            (applies.targets, target),
            (applies.precisions, precision),
            (applies.arithmetic, arithmetic),
            (applies.components if component else None, component),
        )
        if all(allowed is None or value in allowed for allowed, value in pairs):
            return row
    return None


def _named(table: str, row: _Row | None, *key: str) -> _Row:
    if row is None:
        raise ConfigError(
            f"{shown(TOLERANCES_FILE)}: {table}: no row applies to {', '.join(key)}; "
            "add one with its reason"
        )
    return row


def source(row: Row) -> str:
    """Where a tolerance comes from, as reports show it."""
    table = {
        Tolerance: "components",
        ScoreTolerance: "scores",
        AnswerTolerance: "answers",
        LayerTolerance: "layers",
    }[type(row)]
    return f"configs/tolerances.yaml: {table}.{row.name}"


@cache
def load_tolerances(path: Path = TOLERANCES_FILE) -> Tolerances:
    """Loads and checks the table.

    Raises:
        ConfigError: missing or invalid file, or two rows of one name.
    """
    table = validate(Tolerances, read_yaml(path), path)
    tables: dict[str, tuple[Row, ...]] = {
        "components": table.components,
        "scores": table.scores,
        "answers": table.answers,
        "layers": table.layers,
    }
    for key, rows in tables.items():
        names = [row.name for row in rows]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{shown(path)}: {key}.{name}: two rows of this name; rename one")
    return table


def tolerances_digest(path: Path = TOLERANCES_FILE) -> str:
    """Digest of the table: part of every check's key."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
