"""benchmark.svg: where the time of one answer goes, variant by variant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.results import Benchmark, TaskResult, VariantResult

PLOT_FILE = "benchmark.svg"
_COLOURS = {
    "vision": "#4477aa",
    "text encoders": "#66ccee",
    "first pass": "#ccbb44",
    "tokens": "#ee6677",
    "rest": "#bbbbbb",
}
_STAGES = {"vision": "vision", "cross_key_values": "vision", "first_pass": "first pass"}


def write_plot(result: Benchmark, path: Path) -> None:
    """One bar per variant and task, split into stages."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(result.tasks), 1, figsize=(9, 1.2 + 3.2 * len(result.tasks)), squeeze=False
    )
    for axis, (task, found) in zip(axes[:, 0], result.tasks.items(), strict=True):
        _bars(axis, task, found, result.new_tokens)
    figure.suptitle(f"{result.pipeline}: ms per image, batch 1, {result.threads} threads")
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def split(row: VariantResult, new_tokens: int) -> dict[str, float]:
    """Parts of a greedy call in ms that add up to its median; empty if it was not measured."""
    greedy = row.workloads.get("greedy")
    if greedy is None:
        return {}
    parts = dict.fromkeys(_COLOURS, 0.0)
    for stage, ms in greedy.stages_ms.items():
        if stage != "preprocess":
            parts[_STAGES.get(stage, "text encoders")] += ms
    parts["tokens"] = (greedy.step_ms or 0.0) * (new_tokens - 1)
    parts["rest"] = max(0.0, greedy.total_ms.median - sum(parts.values()))
    return parts


def _bars(axis: Any, task: str, found: TaskResult, new_tokens: int) -> None:
    bars = {name: split(row, new_tokens) for name, row in found.variants.items()}
    bars = {name: parts for name, parts in bars.items() if parts}
    for part, colour in _COLOURS.items():
        names = list(_COLOURS)
        lefts = [sum(parts[n] for n in names[: names.index(part)]) for parts in bars.values()]
        widths = [parts[part] for parts in bars.values()]
        axis.barh(list(bars), widths, left=lefts, color=colour, label=part)
    for name, parts in bars.items():
        axis.text(sum(parts.values()), name, f" {sum(parts.values()):.0f}", va="center", fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="ms", title=task)
    axis.legend(fontsize=8, loc="lower right")
