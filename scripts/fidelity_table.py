"""Prints README's table of measured fidelity from a pipeline's verify.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from configs.errors import InputError
from configs.layout import Layout
from configs.load import load_pipeline, shown
from pipeline.command import exit_codes
from pipeline.console import output

NAMES = {"caption": "caption", "vqa": "question answering", "itm": "matching"}
ARTIFACTS = {"onnx": "ONNX", "openvino": "OpenVINO IR"}


def _checks(path: Path) -> list[dict[str, Any]]:
    try:
        verdict = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{shown(path)}: no verdict; run: make all") from None
    if not verdict["passed"]:
        raise InputError(f"{shown(path)}: the verification did not pass; run: make verify")
    checks: list[dict[str, Any]] = verdict["checks"]
    return checks


def _of(check: dict[str, Any]) -> tuple[str, str, str]:
    return check["target"], check["precision"], check.get("variant", "")


def _cell(answer: dict[str, Any], checks: list[dict[str, Any]]) -> str:
    """Equal answers of all, and the worst relative error of any net's output."""
    metrics = answer["metrics"]
    rate = metrics.get("exact_match_rate", metrics.get("decision_match_rate"))
    errors = [
        check["metrics"]["relative_error"]
        for check in checks
        if check["kind"] == "component"
        and check["stage"] in ("onnxruntime_vs_target", "wrapper_vs_onnxruntime")
        and check["task"] == answer["task"]
        and _of(check) == _of(answer)
    ]
    worst = f" ({max(errors):.1e})" if errors else ""
    return f"{round(rate * answer['samples'])} / {answer['samples']}{worst}"


def rows(checks: list[dict[str, Any]]) -> list[str]:
    """Markdown lines: one per target, precision and mode, one column per task."""
    answers = [check for check in checks if check["kind"] in ("tokens", "scores")]
    tasks = list(dict.fromkeys(check["task"] for check in answers))
    lines = [
        f"| artifact | precision | {' | '.join(NAMES[task] for task in tasks)} |",
        "|---" * (2 + len(tasks)) + "|",
    ]
    for target, precision, variant in dict.fromkeys(map(_of, answers)):
        cells = {
            check["task"]: _cell(check, checks)
            for check in answers
            if _of(check) == (target, precision, variant)
        }
        name = ARTIFACTS.get(target, f"BModel {target.upper()}")
        mode = f", {variant}" if variant else ""
        row = [name, precision + mode, *(cells.get(task, "-") for task in tasks)]
        lines.append(f"| {' | '.join(row)} |")
    return lines


@exit_codes
def main(
    config: Annotated[Path, typer.Option(help="pipeline file")] = Path("configs/reference.yaml"),
) -> None:
    """Print the table as Markdown."""
    for line in rows(_checks(Layout(load_pipeline(config)).verdict)):
        output.print(line, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
