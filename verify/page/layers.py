"""Results of ``verify bisect``: the error that each layer introduces, in the order of execution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.load import shown
from verify.page.checks import Way
from verify.page.figures import LogAxis, component_name, exponent, is_number, task_name
from verify.page.sources import Sources

Json = dict[str, Any]

#: Layers in the table below a plot.
WORST_LAYERS = 5
#: Errors below this are drawn here: a logarithmic axis has no zero.
FLOOR = 1e-9
#: Bars of one plot; of more layers, each bar shows the worst of several.
MOST_BARS = 160
_COMPARISONS = {
    "checkpoint_vs_onnx": "ONNX against the checkpoint",
    "onnxruntime_vs_target": "target against onnxruntime",
}


@dataclass(frozen=True)
class Bar:
    """One layer, or the worst of neighbours; heights in percent of the plot."""

    place: float
    height: float
    accumulated: float
    exceeds: bool
    title: str


@dataclass(frozen=True)
class Layer:
    """One line of the table."""

    tensor: str
    operator: str
    introduced: str
    accumulated: str
    exceeds: bool


@dataclass(frozen=True)
class Part:
    """One component in one comparison."""

    heading: str
    bound: str
    #: height of the bound, in percent of the plot
    bound_height: float
    width: float
    ticks: list[tuple[float, str]]
    bars: list[Bar]
    worst: list[Layer]
    exceeding: int
    layers: int
    #: worst error over the bound
    share: float
    faults: list[str]
    islands: list[str]

    @property
    def clean(self) -> bool:
        """Whether every layer stays within its bound."""
        return not self.exceeding and not self.faults

    @property
    def line(self) -> str:
        """The accumulated error as points of a polyline in a box of 100 by 100."""
        middle = self.width / 2
        return " ".join(
            f"{bar.place + middle:.2f},{100 - bar.accumulated:.1f}" for bar in self.bars
        )


@dataclass(frozen=True)
class Bisection:
    """One task on one target."""

    anchor: str
    heading: str
    passed: bool
    verdict: str
    findings: list[str]
    notes: list[str]
    parts: list[Part]

    def shown_open(self, part: Part) -> bool:
        """Whether a plot is unfolded at first: with faults, or closest to its bound."""
        return not part.clean or part is max(self.parts, key=lambda item: item.share)


def bisections(sources: Sources) -> list[Bisection]:
    """Every result file, ready for print; one that lacks something becomes a notice."""
    found = []
    for path, data in sources.results.get("bisect", []):
        try:
            found.append(_bisection(path, data))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            sources.unreadable.append(f"{shown(path)}: damaged ({error!r}); run make bisect")
    return found


def _bisection(path: Path, data: Json) -> Bisection:
    way = Way(str(data["target"]), str(data["precision"]), str(data.get("mode") or ""))
    verdict = data["verdict"]
    return Bisection(
        anchor=f"layers-{path.stem}",
        heading=f"{task_name(str(data['task']))}, {way.name}",
        passed=verdict is None,
        verdict="no layer and no other part is wrong" if verdict is None else _finding(verdict),
        findings=[_finding(finding) for finding in data.get("findings") or []],
        notes=[str(note) for note in data.get("notes") or []],
        parts=[_part(part) for part in data["components"] if part["layers"]],
    )


def _finding(data: Json) -> str:
    return f"{data['part']}: {data['where']}: {data['what']}"


def _part(data: Json) -> Part:
    layers = list(data["layers"])
    bound = float(data["bound"])
    values = [value for layer in layers for value in (layer["introduced"], layer["accumulated"])]
    largest = [v for v in values if is_number(v) and v > FLOOR]
    axis = LogAxis.around([*largest, bound, *([FLOOR] if len(largest) < len(values) else [])])
    net = "" if data.get("net", "main") == "main" else f" ({component_name(str(data['net']))})"
    comparison = str(data["comparison"])
    return Part(
        heading=f"{component_name(str(data['component']))}{net}, "
        f"{_COMPARISONS.get(comparison, component_name(comparison))}",
        bound=exponent(bound),
        bound_height=axis.position(bound),
        width=100 / min(len(layers), MOST_BARS),
        ticks=axis.ticks,
        bars=_bars(layers, axis),
        worst=[_layer(layer) for layer in sorted(layers, key=_size, reverse=True)[:WORST_LAYERS]],
        exceeding=sum(bool(layer["exceeds"]) for layer in layers),
        layers=len(layers),
        share=max(map(_size, layers)) / bound,
        faults=[f"{fault['where']}: {fault['what']}" for fault in data.get("faults") or []],
        islands=[str(node) for node in (data.get("islands") or {}).get("onnx_nodes") or []],
    )


def _size(layer: Json) -> float:
    """Not finite stands above everything."""
    return float(layer["introduced"]) if is_number(layer["introduced"]) else float("inf")


def _bars(layers: Sequence[Json], axis: LogAxis) -> list[Bar]:
    count = min(len(layers), MOST_BARS)
    bars = []
    for index in range(count):
        first, last = index * len(layers) // count, (index + 1) * len(layers) // count
        worst = max(layers[first:last], key=_size)
        bars.append(
            Bar(
                place=round(100 * index / count, 3),
                height=max(_height(axis, worst["introduced"]), 0.5),
                accumulated=_height(axis, worst["accumulated"]),
                exceeds=any(layer["exceeds"] for layer in layers[first:last]),
                title=f"{_tensor(worst)}: {_figure(worst['introduced'])}",
            )
        )
    return bars


def _height(axis: LogAxis, value: Any) -> float:
    """In percent of the plot; what is not finite fills it."""
    return axis.position(max(value, FLOOR)) if is_number(value) else 100.0


def _layer(layer: Json) -> Layer:
    return Layer(
        _tensor(layer),
        str(layer["operator"]),
        _figure(layer["introduced"]),
        _figure(layer["accumulated"]),
        bool(layer["exceeds"]),
    )


def _tensor(layer: Json) -> str:
    return str(layer["tensor"]).removesuffix("_output_0").strip("/")


def _figure(value: Any) -> str:
    return exponent(value) if is_number(value) else "not finite"
