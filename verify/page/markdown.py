"""The tables that documents show, as Markdown, from verify.json and the manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.layout import Layout
from configs.load import load_target, pipeline_target, shown
from configs.schema import TASK_COMPONENTS, TASK_METRICS, PipelineConfig, Precision, Task
from pipeline.json_file import WRONG
from pipeline.manifest import ComponentManifest, read_manifest
from verify.verdict import read_verdict

Check = dict[str, Any]
_TASKS = {"caption": "caption", "vqa": "question answering", "itm": "matching"}
_ARTIFACTS = {"onnx": "ONNX", "openvino": "OpenVINO IR"}
_ACCURACY = (
    *("chip", "set", "task", "answers equal", "metric, checkpoint", "metric, set"),
    *("drop in points [95 %]", "worst tensor error", "files, MB"),
)


def markdown(pipeline: PipelineConfig) -> str:
    """A row per artifact; for a pipeline with chips in several sets, also one per set and task.

    Raises:
        InputError: nothing was verified, or an artifact that was verified is not there any more.
    """
    layout = Layout(pipeline)
    try:
        checks = read_verdict(layout.verdict)["checks"]
    except WRONG:
        raise InputError(f"{shown(layout.verdict)}: no verdict; run: make verify") from None
    lines = fidelity(checks)
    chips = [name for name in pipeline.targets if load_target(name).backend == "sophon"]
    if any(len(pipeline.targets[name].precisions) > 1 for name in chips):
        lines += ["", *accuracy(layout, chips, checks)]
    return "\n".join(lines)


def fidelity(checks: list[Check]) -> list[str]:
    """Equal answers of all, and the worst relative error of any net's output, per artifact."""
    answers = _answers(checks)
    tasks = list(dict.fromkeys(answer["task"] for answer in answers))
    rows = []
    for target, precision, mode in dict.fromkeys(map(_artifact, answers)):
        mine = [a for a in answers if _artifact(a) == (target, precision, mode)]
        cells = {answer["task"]: _cell(answer, checks) for answer in mine}
        name = _ARTIFACTS.get(target, f"BModel {target.upper()}")
        set_name = f"{precision}, {mode}" if mode else precision
        rows.append((name, set_name, *(cells.get(task, "-") for task in tasks)))
    return _table(("artifact", "precision", *(_TASKS[task] for task in tasks)), rows)


def accuracy(layout: Layout, chips: list[str], checks: list[Check]) -> list[str]:
    """Answers, metric and files of every chip, set and task; a failed gate is marked."""
    answers = [answer for answer in _answers(checks) if answer["samples"]]
    rows = [
        _accuracy_row(layout, answer, checks)
        for target in chips
        for precision in layout.pipeline.targets[target].precisions
        for task in layout.pipeline.tasks
        for answer in answers
        if (*_artifact(answer)[:2], answer["task"]) == (target, precision, task)
    ]
    return _table(_ACCURACY, rows)


def _accuracy_row(layout: Layout, answer: Check, checks: list[Check]) -> tuple[str, ...]:
    target, precision, _ = _artifact(answer)
    task: Task = answer["task"]
    quality = answer["metrics"]["quality"][TASK_METRICS[task][0]]
    low, high = (100 * quality[name] for name in ("drop_low", "drop_high"))
    drop = 100 * (quality["checkpoint"] - quality["value"])
    errors = _errors(answer, checks)
    return (
        target.upper(),
        f"`{precision}`",
        _TASKS[task],
        _equal(answer),
        f"{100 * quality['checkpoint']:.1f}",
        f"{100 * quality['value']:.1f}" + ("" if answer["passed"] else " (gate failed)"),
        f"{drop + 0.0:.1f} [{low + 0.0:.1f}, {high + 0.0:.1f}]",
        f"{max(errors):.1e}" if errors else "-",
        f"{_megabytes(layout, target, precision, task):.1f}",
    )


def _megabytes(layout: Layout, target: str, precision: Precision, task: Task) -> float:
    """Size of a set's component files, tables included."""
    chip = pipeline_target(layout.pipeline, target)
    paths: list[Path] = [
        layout.artifact(task, component, chip, precision).manifest
        for component in TASK_COMPONENTS[task]
    ]
    manifests = [read_manifest(ComponentManifest, path) for path in paths]
    return sum(file.size_bytes for item in manifests for file in item.files.values()) / 1e6


def _answers(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check["kind"] in ("tokens", "scores")]


def _artifact(check: Check) -> tuple[str, Precision, str]:
    return check["target"], check["precision"], check.get("variant", "")


def _equal(answer: Check) -> str:
    metrics = answer["metrics"]
    rate = metrics.get("exact_match_rate", metrics.get("decision_match_rate"))
    return f"{round(rate * answer['samples'])} / {answer['samples']}"


def _errors(answer: Check, checks: list[Check]) -> list[float]:
    """Relative errors of the nets' outputs against their source."""
    return [
        check["metrics"]["relative_error"]
        for check in checks
        if check["kind"] == "component"
        and check["gap"] in ("onnxruntime_vs_target", "wrapper_vs_onnxruntime")
        and (check["task"], *_artifact(check)) == (answer["task"], *_artifact(answer))
        and "relative_error" in check["metrics"]
    ]


def _cell(answer: Check, checks: list[Check]) -> str:
    errors = _errors(answer, checks)
    worst = f" ({max(errors):.1e})" if errors else ""
    return _equal(answer) + worst + ("" if answer["passed"] else " (gate failed)")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    rule = "|---" * len(header) + "|"
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return [lines[0], rule, *lines[1:]]
