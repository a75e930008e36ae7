"""What a person reads at the end of an evaluation."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from configs.load import shown
from pipeline.console import messages, output
from verify.evaluation.pipeline import Evaluation


def print_evaluation(evaluation: Evaluation) -> None:
    """One row per subject and metric: both figures, the drop, its interval, the gate."""
    record = evaluation.record
    titles = {metric["name"]: metric for metric in record["metrics"]}
    data_set = record["data_set"]
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column(f"{record['task']} on {escape(data_set['name'])}", no_wrap=True)
    for heading in ("items", "target", "checkp.", "drop, 95 % interval", "allowed"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for subject in record["subjects"]:
        gates = {gate["name"]: gate for gate in subject["gates"]}
        table.add_row(f"[cyan]{_name(subject)}")
        agreement = subject["agreement"]
        share = _figure(agreement["rate"], 100.0)
        verdict = _gate(gates.get("agreement"), ">=")
        table.add_row(" agreement", str(agreement["compared"]), share, "", "", *verdict)
        for metric, figures in subject["metrics"].items():
            scale = 100.0 if titles[metric]["range"] == 1.0 else 1.0
            bounds = (_figure(figures[name], scale) for name in ("drop_low", "drop_high"))
            table.add_row(
                f" {titles[metric]['title']}",
                str(subject["items"]),
                _figure(figures["value"], scale),
                _figure(figures["checkpoint"], scale),
                f"{_figure(figures['drop'], scale)} [{', '.join(bounds)}]".replace("[", r"\["),
                *_gate(gates.get(metric), "<=", scale),
            )
    output.print(table)
    for subject in record["subjects"]:
        divergence = subject["divergence"]
        if divergence and divergence["count"]:
            messages.print(
                f"{_name(subject)}: {divergence['count']} answers differ, from generated token "
                f"{divergence['earliest']} on at the earliest, {divergence['median']:g} at median"
            )
    for problem in evaluation.problems:
        messages.print(f"[red]failed[/] {escape(problem)}")
    messages.print(f"evaluate: {shown(evaluation.path)}")


def _name(subject: dict[str, Any]) -> str:
    parts = (subject["target"], subject["precision"], subject["mode"])
    return " ".join(part for part in parts if part)


def _figure(value: float | None, scale: float) -> str:
    if value is None:
        return "-"
    # Adding zero turns minus zero into zero.
    return f"{round(scale * value, 2) + 0.0:.2f}"


def _gate(gate: dict[str, Any] | None, relation: str, scale: float = 100.0) -> tuple[str, str]:
    if gate is None:
        return "", ""
    verdict = "[green]ok" if gate["passed"] else "[red]failed"
    return f"{relation} {_figure(gate['limit'], scale)}", verdict
