"""What decides which target to ship, besides its answers: size, memory and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from configs.schema import Task
from pipeline.manifest import ComponentManifest
from pipeline.tpu_tools.answer_times import NetName, parts, total
from verify.page.checks import Way
from verify.page.figures import file_size, milliseconds
from verify.page.sources import Sources

#: Tokens of a caption and of an answer, their end included.
CAPTION_TOKENS = 12
ANSWER_TOKENS = 3
#: A way of running OpenVINO -> what ``make bench`` calls it.
_MEASURED_AS = {("f16", "exact"): "exact", ("f16", "fast"): "fast", ("int8", "fast"): "int8"}


@dataclass(frozen=True)
class Cost:
    """What a way of running costs; all tasks together, in words."""

    size: str
    device_memory: str
    #: one line per part of an answer
    times: list[str]
    #: how the times are known; empty where they are not
    times_are: str


def cost_of(sources: Sources, way: Way) -> Cost:
    """Of one way of running; its own files, without verification's reference data."""
    mine = [
        manifest
        for manifest in sources.components.values()
        if (manifest.target, manifest.precision) == (way.target, way.precision)
    ]
    memory = [m.device_memory_bytes for m in mine if m.device_memory_bytes is not None]
    size = sum(record.size_bytes for m in mine for record in m.runtime_files.values())
    measured, estimated = _measured(sources, way), _estimated(mine)
    return Cost(
        file_size(size) if mine else "–",
        file_size(sum(memory)) if memory else "–",
        measured or estimated,
        "measured" if measured else "estimated" if estimated else "",
    )


def _estimated(mine: Sequence[ComponentManifest]) -> list[str]:
    latencies: dict[str, dict[NetName, float | None]] = {}
    for manifest in mine:
        nets = latencies.setdefault(manifest.task, {})
        for net in manifest.compiled_nets:
            nets[(manifest.component, net.name)] = net.latency_ms
    found = []
    for task, nets in latencies.items():
        tokens = ANSWER_TOKENS if task == "vqa" else CAPTION_TOKENS
        for part in parts(cast(Task, task), set(nets), tokens):
            if (latency_ms := total(part, nets)) is not None:
                found.append(f"{part.name} {milliseconds(latency_ms)}")
    return found


def _measured(sources: Sources, way: Way) -> list[str]:
    if way.target != "openvino":
        return []
    name = _MEASURED_AS.get((way.precision, way.mode))
    return [
        f"{task} {milliseconds(median)}"
        for _, data in sources.results.get("benchmark", [])
        for task, median in _medians(data, name)
    ]


def _medians(data: dict[str, object], variant: str | None) -> Sequence[tuple[str, float]]:
    """Of every task, one answer at batch 1; nothing where the file is damaged."""
    found = []
    tasks = data.get("tasks")
    for task, results in tasks.items() if isinstance(tasks, dict) else ():
        try:
            workloads = results["variants"][variant]["workloads"]
            median = next(iter(workloads.values()))["total_ms"]["median"]
        except (KeyError, TypeError, StopIteration):
            continue
        if isinstance(median, float | int):
            found.append((task, float(median)))
    return found
