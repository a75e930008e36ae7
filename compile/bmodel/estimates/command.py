"""``python -m compile estimate``: the vendor compiler's estimates of what is built, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from compile.bmodel.estimates.report import REPORT_FILE, EstimateReport, collect
from configs.errors import InputError
from configs.layout import Layout
from configs.load import shown
from pipeline.atomic import write_atomically
from pipeline.build import as_json
from pipeline.command import exit_codes, select
from pipeline.console import messages, print_table

#: 200 held-out scenes, a table made of 3000 training captions (docs/performance.md).
TOKENS_PER_PASS = 1.54


@exit_codes
def estimate(
    config: Annotated[Path, typer.Option(help="pipeline file")] = Path("configs/reference.yaml"),
    target: Annotated[str | None, typer.Option(help="targets, comma-separated")] = None,
    task: Annotated[str | None, typer.Option(help="tasks, comma-separated")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="tokens of a caption, end included")] = 12,
    answer_tokens: Annotated[
        int, typer.Option(min=1, help="tokens of an answer, end included")
    ] = 3,
    tokens_per_pass: Annotated[
        float, typer.Option(min=1, help="tokens of a pass that checks drafted ones, as measured")
    ] = TOKENS_PER_PASS,
) -> None:
    """Print what the vendor's compiler estimates, and write estimate.json beside the artifacts."""
    selection = select(config, task=task, target=target, backend="sophon")
    chips = {chosen.name for chosen, _ in selection.targets}
    report = collect(
        selection.pipeline, chips, selection.tasks, tokens, answer_tokens, tokens_per_pass
    )
    if not report.nets:
        raise InputError(
            f"{shown(config)}: no BModel is built for this selection; run: make bmodel"
        )
    for table in (_nets(report), _parts(report), _files(report)):
        print_table(table)
    path = Layout(selection.pipeline).root / REPORT_FILE
    write_atomically(path, as_json(report))
    messages.print(f"{report.note}; written to {shown(path)}")


def _nets(report: EstimateReport) -> Table:
    header = ["task", "component", "net", "chip", "set", "built as", "cores", "ms", "DDR", "bound"]
    table = Table(*header, "G operations", "MB moved", "fusions", title="estimate per net")
    for net in report.nets:
        work = net.work
        operations = _operations(work.operations) if work else ""
        share = work.bandwidth_share if work else None
        table.add_row(
            *(net.task, net.component, net.net, net.target, net.precision, net.built_as),
            *(str(net.cores), _ms(net.latency_ms), "" if share is None else f"{share:.0%}"),
            *(net.bound or "", operations, f"{work.moved_bytes / 1e6:.1f}" if work else ""),
            " ".join(f"{name} {count}" for name, count in net.fusions.items()),
        )
    return table


def _parts(report: EstimateReport) -> Table:
    header = ["task", "part", "tokens", "chip", "set", "cores", "ms", "our f32 ms"]
    table = Table(*header, "published f32 ms", "G operations", "MB moved", title="whole answers")
    for part in report.parts:
        moved = part.moved_bytes
        table.add_row(
            *(part.task, part.part, str(part.tokens or ""), part.target, part.precision),
            *(str(part.cores), _ms(part.latency_ms), _ms(part.own_f32_ms)),
            *(_ms(part.published_f32_ms), _operations(part.operations or {})),
            "" if moved is None else f"{moved / 1e6:.1f}",
        )
    return table


def _files(report: EstimateReport) -> Table:
    header = ["task", "chip", "set", "what", "file MB", "device MB", "device / file"]
    table = Table(*header, title="sizes")
    for file in report.files:
        memory = file.device_memory_bytes
        table.add_row(
            *(file.task, file.target, file.precision, file.what, f"{file.file_bytes / 1e6:.1f}"),
            "" if memory is None else f"{memory / 1e6:.1f}",
            "" if memory is None else f"{memory / file.file_bytes:.2f}",
        )
    return table


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1 else f"{value:.2f}"


def _operations(counts: Mapping[str, int]) -> str:
    """Thousand millions, by arithmetic where it is known."""
    return " ".join(
        f"{count / 1e9:.2f}" if arithmetic == "all" else f"{arithmetic} {count / 1e9:.2f}"
        for arithmetic, count in counts.items()
    )
