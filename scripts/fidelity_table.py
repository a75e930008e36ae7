"""Prints README's table of measured fidelity from a pipeline's verify.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from configs.command import exit_codes
from configs.console import output
from configs.errors import InputError
from configs.layout import Layout
from configs.load import load_pipeline, shown

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


def rows(checks: list[dict[str, Any]]) -> list[str]:
    """Markdown rows: one per task, target, precision and mode, in the verdict's order."""
    lines = []
    answers = [check for check in checks if check["kind"] in ("tokens", "scores")]
    for check in answers:
        target, precision, variant = _of(check)
        stages = ("onnxruntime_vs_target", "wrapper_vs_onnxruntime")
        nets = [
            other["metrics"]["relative_error"]
            for other in checks
            if other["kind"] == "component"
            and other["task"] == check["task"]
            and other["stage"] in stages
            and _of(other) == (target, precision, variant)
        ]
        metrics = check["metrics"]
        name = ARTIFACTS.get(target, f"BModel {target.upper()}")
        mode = f", {variant}" if variant else ""
        worst = f"{max(nets):.1e}" if nets else "-"
        rate = metrics.get("exact_match_rate", metrics.get("decision_match_rate"))
        same = f"{round(rate * check['samples'])} / {check['samples']}"
        lines.append(f"| {NAMES[check['task']]} | {name} | {precision}{mode} | {same} | {worst} |")
    return lines


@exit_codes
def main(
    config: Annotated[Path, typer.Option(help="pipeline file")] = Path("configs/reference.yaml"),
) -> None:
    """Print the table as Markdown."""
    checks = _checks(Layout(load_pipeline(config)).verdict)
    output.print(
        "| task | artifact | precision | answers equal to the checkpoint's | worst error |"
    )
    output.print("|---|---|---|---|---|")
    for line in rows(checks):
        output.print(line, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
