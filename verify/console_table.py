"""The table that a person reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipeline.console import messages, output
from verify.results import Check

#: What each gap takes for the truth.
_COMPARED_WITH = {
    "hf_vs_wrapper": "checkpoint",
    "wrapper_vs_onnxruntime": "wrapper",
    "checkpoint_vs_host": "checkpoint",
    "search_rules": "generate",
    "checkpoint_layers": "layers",
    "onnxruntime_vs_target": "onnxruntime",
    "target_layers": "layers",
    "target_constants": "constants",
    "combined_file": "own files",
    "tokens": "checkpoint",
}

#: Short enough for 80 columns.
_DECIDED_BY = {"answers": "answers", "integers": "ints"}


def print_table(checks: Sequence[Check]) -> None:
    """One row per check, by task, then component; the reasons of failures stand below."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("", no_wrap=True)
    table.add_column("against", no_wrap=True)
    for heading in ("samples", "worst", "allowed", "1-cosine"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for task in dict.fromkeys(check.subject.task for check in checks):
        table.add_row(f"[bold]{task}")
        mine = [check for check in checks if check.subject.task == task]
        for part in dict.fromkeys(map(_part, mine)):
            table.add_row(f" [cyan]{part}")
            for check in mine:
                if _part(check) == part:
                    table.add_row(*_row(check))
    output.print(table)
    for check in checks:
        for problem in check.record()["problems"]:
            messages.print(f"[red]failed[/] {escape(check.subject.name)}: {escape(problem)}")


def print_not_simulated(names: Sequence[str]) -> None:
    """What only a full verification proves."""
    for name in names:
        messages.print(f"[yellow]not simulated[/] {escape(name)} (run make verify VERIFY=full)")


def _row(check: Check) -> tuple[str, ...]:
    subject = check.subject
    under_test = subject.target if subject.gap != "hf_vs_wrapper" else "wrapper"
    name = " ".join(part for part in (under_test, subject.precision, subject.variant) if part)
    return (
        f"  {name}",
        _COMPARED_WITH[subject.gap] if subject.variant != "padded" else "bare inputs",
        str(check.samples),
        *_figures(check),
        "[green]passed" if check.passed else "[red]failed",
    )


def _part(check: Check) -> str:
    return check.subject.component or check.subject.kind


def _figures(check: Check) -> tuple[str, str, str]:
    metrics, tolerance = check.metrics, check.tolerance
    if check.subject.kind == "component":
        cosine = metrics.get("cosine")
        return (
            _exponent(metrics.get("relative_error")),
            _allowed(tolerance, "max_relative_error"),
            "-" if cosine is None else _exponent(max(0.0, 1.0 - cosine)),
        )
    if check.subject.kind == "layers":
        allowed = _allowed(tolerance, "max_introduced_error")
        return _exponent(metrics.get("introduced_error")), allowed, ""
    if check.subject.kind in ("host", "file"):
        return "", "", ""
    exact = metrics.get("exact_match_rate", metrics.get("decision_match_rate"))
    return _percent(exact), _percent(tolerance.get("min_agreement")), ""


def _allowed(tolerance: dict[str, Any], name: str) -> str:
    """A bound, or what decides where the bound is too wide for that."""
    decided_by = tolerance.get("decided_by")
    return _DECIDED_BY[decided_by] if decided_by else _exponent(tolerance.get(name))


def _exponent(value: Any) -> str:
    return "-" if value is None else f"{value:.1e}"


def _percent(value: Any) -> str:
    return "-" if value is None else f"{100 * value:.4g} %"
