"""Results of ``make bench`` (docs/performance.md): latency, ratios, memory, the command line."""

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
#: A figure and its interval, in words; None where there is none.
Interval = tuple[str, str] | None


@dataclass(frozen=True)
class Variant:
    """One way of running; figures in words."""

    name: str
    not_measured: str
    disk: str
    peak: str
    tokens_equal: str
    #: of the first workload: how many times as fast as torch in float32
    ratio: Interval
    #: per workload
    workloads: list[Interval]


@dataclass(frozen=True)
class Start:
    """One mode as a fresh process of the command line."""

    mode: str
    first_caption: Interval
    images_per_s: Interval
    peak: str


@dataclass(frozen=True)
class Benchmark:
    """One task."""

    heading: str
    workloads: list[str]
    variants: list[Variant]
    bars: list[Bar]
    starts: list[Start]


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
    quick = ", a quick run" if data.get("quick") else ""
    return Benchmarks(
        machine=f"{machine['processor']}, {machine['cores']} cores, "
        f"{file_size(machine['memory_bytes'])}, {machine['system']}",
        conditions=f"{data['threads']} threads, {data['new_tokens']} new tokens, "
        f"{data['rounds']} rounds{quick}",
        tasks=[_task(name, task) for name, task in data["tasks"].items()],
    )


def _task(name: str, data: Json) -> Benchmark:
    variants = data["variants"]
    workloads = list(dict.fromkeys(w for v in variants.values() for w in v.get("workloads") or {}))
    return Benchmark(
        heading=task_name(name),
        workloads=[component_name(workload) for workload in workloads],
        variants=[_variant(key, variant, workloads, data) for key, variant in variants.items()],
        bars=bars(list(_latencies(variants, workloads))),
        starts=[
            Start(
                mode=mode,
                first_caption=_interval(figures["first_caption_s"], "s"),
                images_per_s=_interval(figures["images_per_s"]),
                peak=file_size(figures["peak_bytes"]),
            )
            for mode, figures in (data.get("command_line") or {}).items()
        ],
    )


def _latencies(variants: Json, workloads: list[str]) -> Iterator[tuple[str, float, str]]:
    """Of the first workload, which every variant has: one answer at batch 1."""
    for name, variant in variants.items():
        result = (variant.get("workloads") or {}).get(workloads[0]) if workloads else None
        if result and is_number(result["total_ms"]["median"]):
            median = result["total_ms"]["median"]
            yield component_name(name), median, milliseconds(median)


def _variant(name: str, data: Json, workloads: list[str], task: Json) -> Variant:
    equal = data.get("tokens_equal")
    results = data.get("workloads") or {}
    ratio = task["ratios"].get(f"{workloads[0]}/{name}/torch_f32") if workloads else None
    return Variant(
        name=component_name(name),
        not_measured=str(data.get("not_measured") or ""),
        disk=file_size(data.get("disk_bytes")),
        peak=file_size(data.get("peak_bytes")),
        tokens_equal=f"{equal[0]} / {equal[1]}" if equal else "–",
        ratio=_interval(ratio, "×") if ratio else None,
        workloads=[
            _interval(results[workload]["total_ms"], "ms") if workload in results else None
            for workload in workloads
        ],
    )


def _interval(data: Json, unit: str = "") -> Interval:
    figure = milliseconds(data["median"]) if unit == "ms" else f"{decimal(data['median'])} {unit}"
    return figure.strip(), f"{decimal(data['low'])} to {decimal(data['high'])}"
