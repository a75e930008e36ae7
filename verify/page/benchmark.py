"""Results of ``make bench`` (docs/performance.md): measured latency, memory and requirements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from configs.load import shown
from verify.page.built import Bar, bars
from verify.page.figures import (
    component_name,
    decimal,
    file_size,
    is_number,
    milliseconds,
    task_name,
)
from verify.page.sources import Sources

Json = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One way of running; figures in words."""

    name: str
    not_measured: str
    disk: str
    peak: str
    tokens_equal: str
    #: per workload: median and its interval, or None
    workloads: list[tuple[str, str] | None]


@dataclass(frozen=True)
class Requirement:
    """One line of what must be reached."""

    name: str
    needed: str
    measured: str
    #: passed, failed, or not measured
    state: str


@dataclass(frozen=True)
class Benchmark:
    """One task."""

    heading: str
    workloads: list[str]
    variants: list[Variant]
    bars: list[Bar]
    requirements: list[Requirement]
    disturbed: int
    samples: int


@dataclass(frozen=True)
class Benchmarks:
    """The whole file."""

    machine: str
    conditions: str
    tasks: list[Benchmark]


def benchmarks(sources: Sources) -> list[Benchmarks]:
    """The result file, ready for print; one that lacks something becomes a notice."""
    found = []
    for path, data in sources.results.get("benchmark", []):
        try:
            found.append(_benchmarks(data))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            sources.unreadable.append(f"{shown(path)}: damaged ({error!r}); run make bench")
    return found


def _benchmarks(data: Json) -> Benchmarks:
    machine = data["machine"]
    quick = "; a quick run with few rounds" if data.get("quick") else ""
    return Benchmarks(
        machine=f"{machine['processor']}, {machine['cores']} cores, "
        f"{file_size(machine['memory_bytes'])}, {machine['system']}",
        conditions=f"{data['threads']} threads, {data['new_tokens']} new tokens{quick}",
        tasks=[_task(name, task) for name, task in data["tasks"].items()],
    )


def _task(name: str, data: Json) -> Benchmark:
    variants = data["variants"]
    workloads = list(dict.fromkeys(w for v in variants.values() for w in v.get("workloads") or {}))
    measured = [w for v in variants.values() for w in (v.get("workloads") or {}).values()]
    return Benchmark(
        heading=task_name(name),
        workloads=[component_name(workload) for workload in workloads],
        variants=[_variant(key, variant, workloads) for key, variant in variants.items()],
        bars=bars(list(_latencies(variants, workloads))),
        requirements=[_requirement(item) for item in data.get("acceptance") or []],
        disturbed=sum(int(w.get("disturbed") or 0) for w in measured),
        samples=sum(int(w["total_ms"]["count"]) for w in measured),
    )


def _latencies(variants: Json, workloads: list[str]) -> Iterator[tuple[str, float, str]]:
    """Of the first workload, which every variant has: one answer at batch 1."""
    for name, variant in variants.items():
        result = (variant.get("workloads") or {}).get(workloads[0]) if workloads else None
        if result and is_number(result["total_ms"]["median"]):
            median = result["total_ms"]["median"]
            yield component_name(name), median, milliseconds(median)


def _variant(name: str, data: Json, workloads: list[str]) -> Variant:
    equal = data.get("tokens_equal")
    results = data.get("workloads") or {}
    return Variant(
        name=component_name(name),
        not_measured=str(data.get("not_measured") or ""),
        disk=file_size(data.get("disk_bytes")),
        peak=file_size(data.get("peak_bytes")),
        tokens_equal=f"{equal[0]} / {equal[1]}" if equal else "–",
        workloads=[
            _interval(results[workload]["total_ms"]) if workload in results else None
            for workload in workloads
        ],
    )


def _interval(data: Json) -> tuple[str, str]:
    return milliseconds(data["median"]), f"{decimal(data['low'])} to {decimal(data['high'])}"


def _requirement(data: Json) -> Requirement:
    measured = data.get("measured")
    met = data.get("met")
    unit = str(data.get("unit") or "")
    return Requirement(
        name=str(data["name"]),
        needed=f"{data['relation']} {decimal(data['threshold'])} {unit}",
        measured=f"{decimal(measured['median'])} {unit} "
        f"({decimal(measured['low'])} to {decimal(measured['high'])})"
        if measured
        else "–",
        state="not measured" if met is None else "passed" if met else "failed",
    )
