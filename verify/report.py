"""The table that a person reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from configs.console import output
from verify.results import Check

_STAGES = {
    "hf_vs_wrapper": "checkpoint - wrapper",
    "wrapper_vs_onnxruntime": "wrapper - onnxruntime",
    "onnxruntime_vs_target": "onnxruntime - target",
    "tokens": "checkpoint - answers",
}


def print_table(checks: Sequence[Check]) -> None:
    """One row per check, by task, then component, then target; the reasons of failures stand below."""
    for task in dict.fromkeys(check.subject.task for check in checks):
        table = Table(title=f"[bold]{task}", title_justify="left", pad_edge=False, box=None)
        table.add_column("component", no_wrap=True)
        table.add_column("compared", no_wrap=True)
        table.add_column("target", no_wrap=True)
        for heading in ("samples", "worst", "allowed", "cosine"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        previous = ""
        mine = [check for check in checks if check.subject.task == task]
        order = list(dict.fromkeys(_part(check) for check in mine))
        for check in sorted(mine, key=lambda check: order.index(_part(check))):
            component = _part(check)
            shown = component if component != previous else ""
            previous = component
            subject = check.subject
            table.add_row(
                shown,
                _STAGES[subject.stage],
                " ".join(p for p in (subject.target, subject.precision, subject.variant) if p),
                str(check.samples),
                *_figures(check),
                "[green]passed" if check.passed else "[red]FAILED",
            )
        output.print(table)
        output.print()
    for check in checks:
        for problem in check.record()["problems"]:
            output.print(f"[red]FAILED[/] {escape(check.subject.name)}: {escape(problem)}")


def print_not_simulated(names: Sequence[str]) -> None:
    """What only a full verification proves."""
    for name in names:
        output.print(f"[yellow]not simulated[/] {escape(name)} (run make verify VERIFY=full)")


def _part(check: Check) -> str:
    return check.subject.component or check.subject.kind


def _figures(check: Check) -> tuple[str, str, str]:
    metrics, tolerance = check.metrics, check.tolerance
    if check.subject.kind == "component":
        return (
            _exponent(metrics.get("relative_error")),
            _exponent(tolerance.get("max_relative_error")),
            _cosine(metrics.get("cosine")),
        )
    exact = metrics.get("exact_match_rate", metrics.get("decision_match_rate"))
    return (_percent(exact), f">= {_percent(tolerance.get('minimum_exact'))}", "")


def _exponent(value: Any) -> str:
    return "-" if value is None else f"{value:.1e}"


def _cosine(value: Any) -> str:
    return "-" if value is None else f"{value:.7f}"


def _percent(value: Any) -> str:
    return "-" if value is None else f"{100 * value:.4g} %"
