"""The figures as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.results import Benchmark, TaskResult, VariantResult, WorkloadResult
from benchmarks.summary import Summary

NAMES = {
    "torch_f32": "torch float32, eager",
    "torch_bf16": "torch bfloat16, eager",
    "onnxruntime": "onnxruntime, float32",
    "notebook": "the notebook's design, OpenVINO FP16",
    "exact": "**ours, `exact`**",
    "fast": "**ours, `fast`**",
    "int8": "**ours, `int8`**",
    "int4": "**ours, `int4`**",
}
_TASKS = {"caption": "Captioning", "vqa": "Question answering", "itm": "Matching"}
_COLUMNS = (
    *("variant", "ms", "x torch", "x notebook", "vision", "first pass", "per token"),
    *("3 beams, ms", "batch 4, ms", "peak MiB", "files MiB", "torch's tokens"),
)
_COMMAND_LINE = ("command line", "first caption, s", "images/s", "images", "peak MiB")
#: Done once per image or question.
_ONCE = ("vision", "cross_key_values", "text_encoder", "text_encoder_unimodal", "vision_projection")
_MIB = 1 << 20


def markdown(result: Benchmark) -> str:
    """The machine, and the tables of every task."""
    machine = result.machine
    tools = ", ".join(f"{name} {version}" for name, version in sorted(result.tools.items()))
    lines = [
        f"{machine.processor} (family/model {machine.family_model}"
        f"{', virtual' if machine.virtual else ''}; {', '.join(machine.features)}), "
        f"{result.threads} threads of {machine.cores} cores, "
        f"{machine.memory_bytes / (1 << 30):.0f} GiB. {tools}. "
        f"{result.new_tokens} new tokens, forced. Medians of {result.rounds} rounds, ratios within "
        "rounds, [interval].",
    ]
    for task, found in result.tasks.items():
        lines += ["", f"### {_TASKS[task]} ({result.pipeline})", ""]
        lines += _table(_COLUMNS, [_cells(found, name) for name in found.variants])
        if found.command_line:
            lines += ["", *_table(_COMMAND_LINE, _command_line(found))]
    return "\n".join(lines)


def _cells(found: TaskResult, name: str) -> list[str]:
    row = found.variants[name]
    if row.not_measured is not None:
        reason = " ".join(row.not_measured.split()).replace("|", "/")
        return [NAMES[name], f"not measured: {reason}", *[""] * (len(_COLUMNS) - 2)]
    greedy = row.workloads["greedy"]
    stages = greedy.stages_ms
    return [
        NAMES[name],
        _interval(greedy.total_ms, 0 if greedy.total_ms.median >= 100 else 1),
        _interval(found.ratios.get(f"greedy/{name}/torch_f32"), 2),
        _interval(found.ratios.get(f"greedy/{name}/notebook"), 2),
        f"{sum(stages.get(stage, 0.0) for stage in _ONCE):.1f}",
        f"{stages['first_pass']:.1f}" if "first_pass" in stages else "",
        f"{greedy.step_ms:.2f}" if greedy.step_ms is not None else "",
        _total(row.workloads.get("beams_3")),
        _total(row.workloads.get("batch_4")),
        _mebibytes(row.peak_bytes),
        _mebibytes(row.disk_bytes),
        _equal(row),
    ]


def _command_line(found: TaskResult) -> list[list[str]]:
    return [
        [
            f"`{mode}`",
            _interval(figures.first_caption_s, 2),
            _interval(figures.images_per_s, 2),
            str(figures.images),
            _mebibytes(figures.peak_bytes),
        ]
        for mode, figures in found.command_line.items()
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [" | ".join(cells) for cells in (columns, *rows)]
    return [f"| {lines[0]} |", "|---" * len(columns) + "|", *(f"| {line} |" for line in lines[1:])]


def _interval(summary: Summary | None, digits: int) -> str:
    if summary is None:
        return ""
    low, middle, high = (f"{v:.{digits}f}" for v in (summary.low, summary.median, summary.high))
    return f"{middle} [{low}, {high}]"


def _total(workload: WorkloadResult | None) -> str:
    if workload is None:
        return ""
    return f"{workload.total_ms.median:.{0 if workload.total_ms.median >= 100 else 1}f}"


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / _MIB:.0f}"


def _equal(row: VariantResult) -> str:
    return f"{row.tokens_equal[0]} / {row.tokens_equal[1]}" if row.tokens_equal else ""
