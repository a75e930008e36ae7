"""Prints docs/quantization.md's accuracy table from a pipeline's verify.json and manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from configs.errors import InputError
from configs.layout import Layout
from configs.load import load_pipeline, pipeline_target, shown
from configs.schema import TASK_COMPONENTS, TASK_METRICS, Precision, Task
from pipeline.command import exit_codes
from pipeline.console import output
from pipeline.manifest import ComponentManifest, read_manifest
from scripts.fidelity_table import NAMES

HEADER = (
    "| chip | set | task | answers equal | metric, checkpoint | metric, set "
    "| drop in points [95 %] | worst tensor error | files, MB |",
    "|---|---|---|---|---|---|---|---|---|",
)
Record = dict[str, Any]


def rows(layout: Layout, checks: list[Record]) -> list[str]:
    """Markdown lines: one per chip, set and task, in the pipeline file's order.

    Raises:
        InputError: an artifact that was verified is not there any more.
    """
    lines = list(HEADER)
    for name, selection in layout.pipeline.targets.items():
        for precision in selection.precisions:
            for task in layout.pipeline.tasks:
                mine = [
                    check
                    for check in checks
                    if (check["target"], check["precision"], check["task"])
                    == (name, precision, task)
                ]
                answers = [check for check in mine if check["kind"] in ("tokens", "scores")]
                lines += [
                    _row(layout, name, precision, task, one, mine)
                    for one in answers
                    if one["samples"]
                ]
    return lines


def _row(
    layout: Layout,
    target: str,
    precision: Precision,
    task: Task,
    answer: Record,
    checks: list[Record],
) -> str:
    metrics = answer["metrics"]
    rate = metrics.get("exact_match_rate", metrics.get("decision_match_rate"))
    quality = metrics["quality"][TASK_METRICS[task][0]]
    low, high = (100.0 * quality[name] for name in ("drop_low", "drop_high"))
    drop = 100.0 * (quality["checkpoint"] - quality["value"])
    errors = [
        check["metrics"]["relative_error"]
        for check in checks
        if check["kind"] == "component" and "relative_error" in check["metrics"]
    ]
    cells = (
        target.upper(),
        f"`{precision}`",
        NAMES[task],
        f"{round(rate * answer['samples'])} / {answer['samples']}",
        f"{100 * quality['checkpoint']:.1f}",
        f"{100 * quality['value']:.1f}" + ("" if answer["passed"] else " (gate failed)"),
        f"{drop + 0.0:.1f} [{low + 0.0:.1f}, {high + 0.0:.1f}]",
        f"{max(errors):.1e}" if errors else "-",
        f"{_megabytes(layout, target, precision, task):.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _megabytes(layout: Layout, target: str, precision: Precision, task: Task) -> float:
    """Size of a set's component files, tables included."""
    total = 0
    chip = pipeline_target(layout.pipeline, target)
    for component in TASK_COMPONENTS[task]:
        location = layout.artifact(task, component, chip, precision)
        manifest = read_manifest(ComponentManifest, location.manifest)
        total += sum(record.size_bytes for record in manifest.files.values())
    return total / 1e6


def _checks(path: Path) -> list[Record]:
    try:
        found: list[Record] = json.loads(path.read_text(encoding="utf-8"))["checks"]
    except (OSError, ValueError, KeyError):
        raise InputError(f"{shown(path)}: no verdict; run: make verify CONFIG=...") from None
    return found


@exit_codes
def main(
    config: Annotated[Path, typer.Option(help="pipeline file")] = Path(
        "configs/reference-precisions.yaml"
    ),
) -> None:
    """Print the table as Markdown; a set whose gate failed is marked."""
    layout = Layout(load_pipeline(config))
    for line in rows(layout, _checks(layout.verdict)):
        output.print(line, soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
