"""The verdict's checks as rows: what was measured, what is allowed, and what is left between."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from verify.page.figures import LogAxis, component_name, exponent, is_number, percent, target_name

Json = dict[str, Any]

#: What each gap takes for the truth.
_COMPARED_WITH = {
    "hf_vs_wrapper": "checkpoint",
    "wrapper_vs_onnxruntime": "wrapper in torch",
    "onnxruntime_vs_target": "onnxruntime",
    "checkpoint_vs_host": "checkpoint",
    "search_rules": "HuggingFace's generate on random numbers",
    "checkpoint_layers": "checkpoint, layer by layer",
    "target_layers": "onnxruntime, layer by layer",
    "target_constants": "exported constants",
    "combined_file": "the nets' own files",
    "tokens": "checkpoint",
}


@dataclass(frozen=True)
class Way:
    """One way of running a task: target, precision set and, for OpenVINO, the mode."""

    target: str
    precision: str
    mode: str

    @property
    def name(self) -> str:
        """As headings have it."""
        mode = f", {self.mode}" if self.mode else ""
        return f"{target_name(self.target)} {self.precision}{mode}"


@dataclass(frozen=True)
class Row:
    """One check, ready for print."""

    record: Json
    way: Way
    #: what is under test, where the heading does not say it
    name: str
    against: str
    #: measured over allowed, the worst of the check's figures; None where there are none, and where
    #: a bound that is kept is too wide to say anything
    used: float | None
    #: plotted: relative error and its bound
    error: float | None
    bound: float | None

    @property
    def passed(self) -> bool:
        """The check's verdict."""
        return bool(self.record.get("passed"))

    @property
    def task(self) -> str:
        """Task name in the manifest."""
        return str(self.record.get("task"))

    @property
    def part(self) -> str:
        """Component, or the kind of whole answers."""
        return str(self.record.get("component") or self.record.get("kind"))

    @property
    def title(self) -> str:
        """How failures and captions call it."""
        return f"{self.task}, {component_name(self.part)}: {self.name} against {self.against}"

    @property
    def margin(self) -> float | None:
        """How many times the measured value fits into its bound."""
        if self.used is None:
            return None
        return math.inf if self.used == 0 else 1 / self.used

    @property
    def metrics(self) -> Json:
        """Measured figures."""
        return dict(self.record.get("metrics") or {})

    @property
    def tolerance(self) -> Json:
        """Bounds, with their source and reason."""
        return dict(self.record.get("tolerance") or {})

    @property
    def problems(self) -> list[str]:
        """Why it failed."""
        return [str(problem) for problem in self.record.get("problems") or []]

    @property
    def allowed(self) -> str:
        """The plotted bound in print, or what decides in its place."""
        decided_by = self.tolerance.get("decided_by")
        return f"{decided_by} decide" if decided_by else exponent(self.bound)

    @property
    def exact(self) -> str:
        """``199 / 200``: answers equal to the checkpoint's."""
        rate, samples = answer_rate(self.metrics), self.record.get("samples") or 0
        return f"{round(rate * samples)} / {samples}" if rate is not None else "–"


def answer_rate(metrics: Json) -> float | None:
    """Share of answers equal to the checkpoint's."""
    value = metrics.get("exact_match_rate", metrics.get("decision_match_rate"))
    return float(value) if is_number(value) else None


def rows(checks: Sequence[Json]) -> list[Row]:
    """Every check of a verdict."""
    return [_row(check) for check in checks]


def ways(every: Iterable[Row]) -> list[Way]:
    """Ways of running, in the verdict's order."""
    return list(dict.fromkeys(row.way for row in every))


def error_axis(every: Iterable[Row]) -> LogAxis:
    """One axis for all component errors and their bounds."""
    return LogAxis.around([v for row in every for v in (row.error, row.bound) if v])


def tightest(every: Iterable[Row]) -> Row | None:
    """The check with the least left between measured and allowed."""
    measured = [row for row in every if row.used is not None]
    return max(measured, key=lambda row: row.used or 0.0, default=None)


def figures(row: Row) -> list[tuple[str, str, str]]:
    """(what, measured, allowed) of a check, in words."""
    metrics, tolerance = row.metrics, row.tolerance
    if row.record.get("kind") == "component":
        cosine, least = metrics.get("cosine"), tolerance.get("min_cosine")
        return [
            (
                "largest relative error",
                exponent(metrics.get("relative_error")),
                _at_most(tolerance, "max_relative_error"),
            ),
            ("1 − cosine", exponent(_distance(cosine)), "at most " + exponent(_distance(least))),
        ]
    if row.record.get("kind") == "layers":
        constants = row.record.get("gap") == "target_constants"
        return [
            (
                "part of a constant not in the file"
                if constants
                else "error of the worst layer by itself",
                exponent(metrics.get("introduced_error")),
                _at_most(tolerance, "max_introduced_error"),
            )
        ]
    if row.record.get("kind") in ("host", "file"):
        return [("differences from the checkpoint", str(len(metrics.get("findings") or ())), "0")]
    found = [
        (
            "answers equal to the checkpoint's",
            f"{row.exact} ({percent(answer_rate(metrics))})",
            "at least " + percent(tolerance.get("min_agreement")),
        )
    ]
    for name, words in (("probability", "match probability"), ("similarity", "cosine score")):
        key = f"max_{name}_error"
        if key in metrics:
            allowed = _at_most(tolerance, key)
            found.append((f"error of the {words}", exponent(metrics.get(key)), allowed))
    return found


def _at_most(tolerance: Json, name: str) -> str:
    """A bound in words; one that finds no fault says what does."""
    decided_by = tolerance.get("decided_by")
    also = f"; {decided_by} decide" if decided_by else ""
    return "at most " + exponent(tolerance.get(name)) + also


def _row(check: Json) -> Row:
    gap, variant = str(check.get("gap")), str(check.get("variant") or "")
    padded = variant == "padded"
    way = Way(str(check.get("target")), str(check.get("precision")), "" if padded else variant)
    name = "export wrapper" if gap == "hf_vs_wrapper" else way.name
    if padded:
        name += ", padded"
    metrics, tolerance = check.get("metrics") or {}, check.get("tolerance") or {}
    component = check.get("kind") == "component"
    rough = bool(tolerance.get("decided_by"))
    return Row(
        check,
        way,
        name,
        "bare inputs" if padded else _COMPARED_WITH.get(gap, gap),
        _used(metrics, tolerance),
        _positive(metrics.get("relative_error")) if component else None,
        _positive(tolerance.get("max_relative_error")) if component and not rough else None,
    )


def _used(metrics: Json, tolerance: Json) -> float | None:
    """Largest share of a bound that a measured figure takes up."""
    pairs: list[tuple[Any, Any]] = [
        (metrics.get("relative_error"), tolerance.get("max_relative_error")),
        (_distance(metrics.get("cosine")), _distance(tolerance.get("min_cosine"))),
        (metrics.get("max_probability_error"), tolerance.get("max_probability_error")),
        (metrics.get("max_similarity_error"), tolerance.get("max_similarity_error")),
        (metrics.get("introduced_error"), tolerance.get("max_introduced_error")),
    ]
    shares = [
        measured / allowed
        for measured, allowed in pairs
        if is_number(measured) and is_number(allowed) and allowed > 0
    ]
    largest = max(shares, default=None)
    kept = largest is not None and largest <= 1
    return None if kept and tolerance.get("decided_by") else largest


def _distance(cosine: Any) -> float | None:
    return max(0.0, 1.0 - cosine) if is_number(cosine) else None


def _positive(value: Any) -> float | None:
    return float(value) if is_number(value) and value >= 0 else None
