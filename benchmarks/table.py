"""The tables of docs/performance.md, written between its markers and nowhere else."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import Acceptance, Benchmark, TaskResult, VariantResult
from benchmarks.schedule import BATCH_4, BATCH_16, BEAMS, VARIANTS
from benchmarks.summaries import Summary
from pipeline.atomic import write_atomically

NAMES = {
    "torch_f32": "torch float32, eager",
    "torch_bf16": "torch bfloat16, eager",
    "torch_compile": "torch float32, `torch.compile`",
    "onnxruntime": "onnxruntime, float32",
    "notebook": "the notebook's design, OpenVINO FP16",
    "exact": "**ours, `exact`**",
    "fast": "**ours, `fast`**",
    "int8": "**ours, `int8`**",
    "int4": "**ours, `int4`**",
}
_TASKS = {"caption": "Captioning", "vqa": "Question answering", "itm": "Matching"}
_SPEED_COLUMNS = (
    *("variant", "ms", "vision", "first pass", "per token", "x torch", "x notebook"),
    *("peak MiB", "files MiB"),
)
_SHAPES = ((BEAMS.name, "3 beams, ms"), (BATCH_4.name, "batch 4, ms"), (BATCH_16.name, "16, ms"))
_COMPARED = ((BEAMS.name, "3 beams / greedy"), (BATCH_16.name, "images/s, 16 / 1"))
_LIMITS = (
    ("gemm_f32", "matrix products of 577 rows, float32", 1e9, "GFLOP/s"),
    ("gemm_bf16", "the same, bfloat16", 1e9, "GFLOP/s"),
    ("gemm_int8", "the same, INT8", 1e9, "GFLOP/s"),
    ("read_bandwidth", "reading memory", 1e9, "GB/s"),
)
_MIB = 1 << 20


def begin_marker(pipeline: str) -> str:
    """First line of a pipeline's part."""
    return f"<!-- benchmark {pipeline}: begin; written by make bench -->"


def end_marker(pipeline: str) -> str:
    """Last line of a pipeline's part."""
    return f"<!-- benchmark {pipeline}: end -->"


def write_tables(document: Path, result: Benchmark) -> bool:
    """Replaces the pipeline's part of a document; False if it has no markers for this pipeline.

    Raises:
        ToolError: the document cannot be written.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    begin, end = begin_marker(result.pipeline), end_marker(result.pipeline)
    if begin not in text or end not in text:
        return False
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    write_atomically(document, f"{head}{begin}\n{markdown(result)}\n{end}{tail}")
    return True


def markdown(result: Benchmark) -> str:
    """Everything that a reader of the document needs, as Markdown."""
    machine = result.machine
    features = ", ".join(machine.features) or "no vector extensions known"
    virtual = ", virtual" if machine.virtual else ""
    memory = machine.memory_bytes / (1 << 30)
    tools = ", ".join(f"{name} {version}" for name, version in sorted(result.tools.items()))
    lines = [
        f"{machine.processor} (family/model {machine.family_model}{virtual}; {features}), "
        f"{result.threads} threads of {machine.cores} cores, {memory:.0f} GiB. {tools}. "
        f"{result.new_tokens} new tokens, forced; a caption's prompt has {result.prompt_tokens}. "
        "Medians ± half the interquartile range.",
    ]
    for task, found in result.tasks.items():
        lines += ["", f"### {_TASKS[task]} ({result.pipeline})", "", *_speed(found)]
        for part in (_shapes(found), _limits(found), _command_line(found)):
            if part:
                lines += ["", *part]
        if found.acceptance:
            lines += ["", *_acceptance(found.acceptance)]
        lines += _disturbed(found)
    return "\n".join(lines)


def _speed(found: TaskResult) -> list[str]:
    lines = [_row(_SPEED_COLUMNS), _rule(len(_SPEED_COLUMNS))]
    for variant, row in _rows(found):
        greedy = row.workloads.get("greedy")
        if row.not_measured is not None or greedy is None:
            reason = row.not_measured or "interrupted"
            blank = [""] * (len(_SPEED_COLUMNS) - 2)
            lines.append(_row([NAMES[variant], f"not measured: {_cell(reason)}", *blank]))
            continue
        stages = greedy.stages_ms
        names = ("vision", "cross_key_values", "text_encoder", "image_features", "text_features")
        cells = [
            NAMES[variant],
            _spread(greedy.total_ms, 0 if greedy.total_ms.median >= 100 else 1),
            f"{sum(stages.get(name, 0.0) for name in names):.1f}",
            f"{stages['first_pass']:.1f}" if "first_pass" in stages else "",
            f"{greedy.step_ms.median:.2f}" if greedy.step_ms else "",
            _factor(found.ratios.get(f"greedy/{variant}/torch_f32")),
            _factor(found.ratios.get(f"greedy/{variant}/notebook")),
            _mebibytes(row.peak_bytes),
            _mebibytes(row.disk_bytes),
        ]
        lines.append(_row(cells))
    return lines


def _shapes(found: TaskResult) -> list[str]:
    measured = {name for _, row in _rows(found) for name in row.workloads}
    present = [(name, title) for name, title in _SHAPES if name in measured]
    if not present:
        return []
    compared = [(name, title) for name, title in _COMPARED if name in measured]
    if any(key.endswith("/token_growth") for key in found.shapes):
        compared.append(("token_growth", "token, 64 / 8 past"))
    tokens = any(row.tokens_equal for _, row in _rows(found))
    header = ["variant", *(title for _, title in (*present, *compared))]
    header += ["torch's tokens"] if tokens else []
    lines = [_row(header), _rule(len(header))]
    for variant, row in _rows(found):
        if row.not_measured is not None:
            continue
        cells = [NAMES[variant]]
        cells += [
            _spread(row.workloads[name].total_ms, 0) if name in row.workloads else ""
            for name, _ in present
        ]
        cells += [_factor(found.shapes.get(f"{variant}/{name}")) for name, _ in compared]
        if tokens:
            equal = row.tokens_equal
            cells.append(f"{equal[0]} / {equal[1]}" if equal else "")
        lines.append(_row(cells))
    return lines


def _limits(found: TaskResult) -> list[str]:
    if not found.limits:
        return []
    lines = [_row(["limit of the machine", "measured"]), _rule(2)]
    for name, title, divisor, unit in _LIMITS:
        if name in found.limits:
            rate = _spread(_over(found.limits[name], divisor), 0 if unit == "GFLOP/s" else 1)
            lines.append(_row([title, f"{rate} {unit}"]))
    for mode, floor in found.floor_ms.items():
        share = found.floor_share.get(mode)
        reached = f"; `{mode}` reaches {_percent(share)}" if share else ""
        lines.append(_row([f"floor in `{mode}`'s types", f"{_spread(floor, 0)} ms{reached}"]))
    return lines


def _command_line(found: TaskResult) -> list[str]:
    if not found.starts and not found.folders and not found.endurance:
        return []
    lines = [_row(["command line", "measured"]), _rule(2)]
    for mode, start in found.starts.items():
        peak = _mebibytes(start.peak_bytes)
        figure = f"{_spread(start.first_caption_s, 2)} s, peak {peak} MiB"
        lines.append(_row([f"`{mode}`, process start to first caption, warm cache", figure]))
    for mode, folder in found.folders.items():
        figure = (
            f"{folder.images_per_s:.2f} images/s; inference alone "
            f"{folder.inference_images_per_s:.2f}"
        )
        lines.append(_row([f"`{mode}`, folder of {folder.images} photos", figure]))
    for mode, endured in found.endurance.items():
        figure = (
            f"cost per image {100 * endured.cost_growth:+.1f} %, "
            f"resident memory {100 * endured.resident_growth:+.2f} %"
        )
        lines.append(_row([f"`{mode}`, growth over {endured.images} images", figure]))
    return lines


def _acceptance(lines: tuple[Acceptance, ...]) -> list[str]:
    rows = [_row(["must reach", "measured (interval)", "met"]), _rule(3)]
    for line in lines:
        relation = "at least" if line.relation == ">=" else "at most"
        unit = {"x": "x", "s": " s"}.get(line.unit, "")
        figure = "not measured"
        if line.measured is not None:
            figure = f"{line.measured.median:.2f}{unit}"
            if line.measured.count > 1:
                figure += f" ({line.measured.low:.2f} to {line.measured.high:.2f})"
        met = {None: "", True: "yes", False: "**no**"}[line.met]
        rows.append(_row([f"{line.name}: {relation} {line.threshold:g}{unit}", figure, met]))
    return rows


def _disturbed(found: TaskResult) -> list[str]:
    flagged = sum(not sample.clean for sample in found.samples)
    if not flagged:
        return []
    return [
        "",
        f"{flagged} of {len(found.samples)} samples were taken while other processes used more "
        "than 6 % of a core; they count only where too few others remain.",
    ]


def _rows(found: TaskResult) -> list[tuple[str, VariantResult]]:
    return [(name, found.variants[name]) for name in VARIANTS if name in found.variants]


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: int) -> str:
    return "|---" * columns + "|"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


def _spread(summary: Summary, digits: int) -> str:
    half = (summary.q3 - summary.q1) / 2
    return f"{summary.median:.{digits}f} ± {half:.{digits}f}"


def _factor(summary: Summary | None) -> str:
    return "" if summary is None else f"{summary.median:.2f}"


def _percent(summary: Summary) -> str:
    low, middle, high = (100 * value for value in (summary.low, summary.median, summary.high))
    return f"{middle:.0f} % ({low:.0f} to {high:.0f})"


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / _MIB:.0f}"


def _over(summary: Summary, divisor: float) -> Summary:
    names = ("median", "q1", "q3", "mad", "low", "high")
    return summary.model_copy(update={name: getattr(summary, name) / divisor for name in names})
