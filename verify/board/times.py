"""Measured times beside the compiler's estimates, per net and per whole answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from pipeline.console import output
from runtime.files.manifests import ComponentManifest
from verify.board.results import TaskResult
from verify.parity.compare import number


def task_times(
    manifests: Iterable[ComponentManifest], measured: TaskResult
) -> dict[str, list[dict[str, Any]]]:
    """Milliseconds of one task's nets, in every shape, and of its answers.

    What an answer takes beyond its nets is the host's: images, texts, transfers, the search.
    """
    nets, alone, estimates = [], {}, {}
    for manifest in manifests:
        component = str(manifest.component)
        found = measured.components[component]
        for net in manifest.nets:
            for stage, shape in enumerate(net.shapes):
                name = f"{component}/{shape.name}"
                latency = found.latency_ms.get(shape.name)
                alone[name], estimates[name] = latency, shape.latency_ms
                nets.append(
                    {
                        "net": name,
                        "estimated_ms": shape.latency_ms,
                        "measured_ms": latency,
                        "transfer_ms": found.transfer_ms.get(shape.name),
                        "bmrt_test_ms": _vendor(measured, shape.file, net.artifact_net, stage),
                    }
                )
    answers = [
        {
            "calls": answer.calls,
            "estimated_ms": _sum(answer.calls, estimates),
            "measured_ms": answer.milliseconds,
            "host_ms": None if nets_ms is None else number(answer.milliseconds - nets_ms),
        }
        for answer in measured.answers
        for nets_ms in [_sum(answer.calls, alone)]
    ]
    return {"nets": nets, "answers": answers}


def _vendor(measured: TaskResult, file: str, net: str | None, stage: int) -> float | None:
    """The vendor's tool on a net's own file, or on the task's where all nets are in one."""
    for times in (measured.bmrt_test_ms.get(file, {}), *measured.bmrt_test_ms.values()):
        stages = times.get(net or "", ())
        # A shape in a file of its own is that file's only stage.
        if stages:
            return stages[stage] if stage < len(stages) else stages[0]
    return None


def _sum(calls: Mapping[str, int], times: Mapping[str, float | None]) -> float | None:
    parts = [(count, times.get(name)) for name, count in calls.items()]
    known = [count * time for count, time in parts if time is not None]
    return number(sum(known)) if parts and len(known) == len(parts) else None


def print_times(tasks: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> None:
    """One row per net and answer."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for heading in ("milliseconds", "estimated", "measured", "bmrt_test", "transfers", "host"):
        table.add_column(heading, justify="left" if heading == "milliseconds" else "right")
    for task, found in tasks.items():
        for row in found["nets"]:
            keys = ("estimated_ms", "measured_ms", "bmrt_test_ms", "transfer_ms")
            table.add_row(f"{task} {row['net']}", *(_shown(row[key]) for key in keys), "")
        for index, row in enumerate(found["answers"]):
            table.add_row(
                f"{task} answer {index}",
                *(_shown(row["estimated_ms"]), _shown(row["measured_ms"]), "", ""),
                _shown(row["host_ms"]),
            )
    output.print(table)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
