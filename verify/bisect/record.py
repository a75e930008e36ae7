"""What a bisection leaves: JSON for the report, a plot per component, a table for the reader."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from configs.layout import Layout
from configs.load import shown
from configs.schema import PipelineConfig
from configs.tolerances import LayerTolerance
from pipeline.atomic import write_atomically
from pipeline.build import tool_versions
from pipeline.console import output
from verify.bisect.diagnosis import ComponentDiagnosis, Diagnosis
from verify.bisect.plot import plot_layers
from verify.layers.introduced import LayerError, ranked
from verify.parity.compare import number

SCHEMA_VERSION = 1
FOLDER = "bisect"
#: Layers that the printed table shows per component.
SHOWN_LAYERS = 6


def stem(diagnosis: Diagnosis) -> str:
    """File name of a diagnosis without its ending."""
    artifacts = diagnosis.artifacts
    parts = [diagnosis.task.task, artifacts.name, artifacts.precision]
    if artifacts.name == "openvino":
        parts.append(diagnosis.mode)
    return "_".join(parts)


def write(diagnosis: Diagnosis, pipeline: PipelineConfig) -> Path:
    """Writes ``bisect/<task>_<target>_<precision>.json`` and its plots; returns the JSON's path.

    Raises:
        ToolError: the disk is full or the folder cannot be written.
    """
    folder = Layout(pipeline).root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    name = stem(diagnosis)
    components = []
    for part in diagnosis.components:
        plots = plot_layers(part, folder / f"{name}_{_part_name(part)}")
        components.append({**_component(part), "plots": [path.name for path in plots]})
    path = folder / f"{name}.json"
    text = json.dumps(_record(diagnosis, pipeline, components), indent=1, allow_nan=False)
    write_atomically(path, text + "\n")
    return path


def _part_name(part: ComponentDiagnosis) -> str:
    net = "" if part.net == "main" else f"_{part.net}"
    return f"{part.component}{net}_{part.comparison}"


def _record(
    diagnosis: Diagnosis, pipeline: PipelineConfig, components: list[dict[str, Any]]
) -> dict[str, Any]:
    artifacts, verdict = diagnosis.artifacts, diagnosis.verdict
    return {
        "schema_version": SCHEMA_VERSION,
        "pipeline": pipeline.name,
        "task": diagnosis.task.task,
        "target": artifacts.name,
        "precision": artifacts.precision,
        "mode": diagnosis.mode if artifacts.name == "openvino" else "",
        "verdict": None if verdict is None else verdict.__dict__,
        "findings": [finding.__dict__ for finding in diagnosis.findings],
        "components": components,
        "notes": diagnosis.notes,
        "tools": tool_versions("onnxruntime", "openvino", "transformers", "torch"),
    }


def _component(part: ComponentDiagnosis) -> dict[str, Any]:
    return {
        "component": part.component,
        "net": part.net,
        "comparison": part.comparison,
        "method": part.method,
        "bound": part.bound,
        "cases": list(part.layers.cases),
        "faults": [{"where": where, "what": what} for where, what in part.layers.faults],
        "layers": [_layer(error, part.tolerance) for error in part.layers.errors],
        "islands": {
            "onnx_nodes": [island.node for island in part.islands],
            "quantize_table": [island.table_row() for island in part.islands],
            "nncf_ignored_scope": [island.node for island in part.islands],
        },
    }


def _layer(error: LayerError, tolerance: LayerTolerance) -> dict[str, Any]:
    return {
        "index": error.index,
        "layer": error.layer,
        "tensor": error.tensor,
        "node": error.node,
        "operator": error.operator,
        "vendor_name": error.vendor_name,
        # null stands for values that are not finite
        "introduced": number(error.introduced),
        "introduced_max": number(error.introduced_max),
        "accumulated": number(error.accumulated),
        "exceeds": not error.introduced <= tolerance.bound(error.operators),
    }


def print_diagnosis(diagnosis: Diagnosis, path: Path) -> None:
    """The worst layers per component, what is wrong, and which islands would mend it."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("layer", no_wrap=True)
    table.add_column("operator", no_wrap=True, min_width=8)
    for heading in ("introduced", "accumulated"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    for part in diagnosis.components:
        net = "" if part.net == "main" else f" ({part.net})"
        table.add_row(
            f"[bold]{part.component}{net}[/] [dim]{part.comparison.replace('_', ' ')}, "
            f"bound {part.bound:.0e}"
        )
        for error in ranked(part.layers.errors)[:SHOWN_LAYERS]:
            table.add_row(*_row(error, part.tolerance))
    output.print(table)
    for finding in diagnosis.findings:
        output.print(f"[red]found[/] {escape(str(finding))}", soft_wrap=True)
    for part in diagnosis.components:
        if part.islands:
            names = ", ".join(island.node for island in part.islands[:SHOWN_LAYERS])
            more = len(part.islands) - SHOWN_LAYERS
            rest = f" and {more} more" if more > 0 else ""
            output.print(
                f"float islands of {part.component}: {escape(names)}{rest}", soft_wrap=True
            )
    for note in diagnosis.notes:
        output.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    verdict = diagnosis.verdict
    what = "[green]nothing found[/]" if verdict is None else f"[red]{escape(str(verdict))}[/]"
    output.print(f"bisect {stem(diagnosis)}: {what}", soft_wrap=True)
    output.print(f"details and plots: {shown(path)}", soft_wrap=True)


def _row(error: LayerError, tolerance: LayerTolerance) -> tuple[str, ...]:
    colour = "red" if not error.introduced <= tolerance.bound(error.operators) else "default"
    return (
        f"  [{colour}]{escape(error.tensor.removesuffix('_output_0').strip('/'))}",
        error.operator,
        f"[{colour}]{_figure(error.introduced)}",
        _figure(error.accumulated),
    )


def _figure(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else "not finite"
