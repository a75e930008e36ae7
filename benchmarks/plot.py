"""benchmark.svg: where the time of one caption goes, variant by variant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.results import Benchmark, TaskResult
from benchmarks.schedule import NEW_TOKENS, VARIANTS

PLOT_FILE = "benchmark.svg"
_PARTS = (
    ("vision", "#4477aa"),
    ("text encoder", "#66ccee"),
    ("first pass", "#ccbb44"),
    ("tokens", "#ee6677"),
    ("rest", "#bbbbbb"),
)


def write_plot(result: Benchmark, path: Path) -> None:
    """One bar per variant and task, split into stages, and the floor of each of our modes."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot

    measured = {
        task: found
        for task, found in result.tasks.items()
        if any("greedy" in row.workloads for row in found.variants.values())
    }
    if not measured:
        return
    figure, axes = pyplot.subplots(
        len(measured), 1, figsize=(9, 1.2 + 3.2 * len(measured)), squeeze=False
    )
    for axis, (task, found) in zip(axes[:, 0], measured.items(), strict=True):
        _bars(axis, task, found)
    figure.suptitle(f"{result.pipeline}: ms per image, batch 1, {result.threads} threads")
    figure.tight_layout()
    temporary = path.with_name(f".{path.name}.part")
    figure.savefig(temporary, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    temporary.replace(path)


def split(found: TaskResult, variant: str) -> dict[str, float] | None:
    """Stages of a greedy call in ms that add up to its median, or None if it was not measured."""
    row = found.variants.get(variant)
    greedy = None if row is None else row.workloads.get("greedy")
    if greedy is None:
        return None
    stages = greedy.stages_ms
    parts = {
        "vision": stages.get("vision", 0.0) + stages.get("cross_key_values", 0.0),
        "text encoder": stages.get("text_encoder", 0.0),
        "first pass": stages.get("first_pass", 0.0),
        "tokens": 0.0,
    }
    if greedy.step_ms is not None:
        parts["tokens"] = greedy.step_ms.median * (NEW_TOKENS - 1)
    parts["rest"] = max(0.0, greedy.total_ms.median - sum(parts.values()))
    return parts


def _bars(axis: Any, task: str, found: TaskResult) -> None:
    names = [name for name in VARIANTS if split(found, name) is not None]
    for place, name in enumerate(names):
        left = 0.0
        parts = split(found, name) or {}
        for part, colour in _PARTS:
            width = parts.get(part, 0.0)
            axis.barh(place, width, left=left, color=colour, label=part if place == 0 else None)
            left += width
        axis.text(left, place, f" {left:.0f}", va="center", fontsize=8)
        if name in found.floor_ms:
            floor = found.floor_ms[name].median
            axis.plot([floor, floor], [place - 0.45, place + 0.45], color="black", linewidth=2)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel("ms")
    axis.set_title(f"{task} (black line: the machine's floor)" if found.floor_ms else task)
    axis.legend(fontsize=8, loc="lower right")
