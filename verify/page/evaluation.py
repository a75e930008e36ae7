"""Results of ``make evaluate`` (docs/evaluation.md): metrics, drops, divergences, worst cases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from configs.load import shown
from verify.page.checks import Way
from verify.page.figures import decimal, is_number, percent, task_name
from verify.page.scenes import embedded
from verify.page.sources import Sources

Json = dict[str, Any]

#: Worst cases shown per task and data set; the result file holds more.
MOST_CASES = 6
#: Cases shown where no answer differs.
FEWEST_CASES = 3
#: Bars of a divergence histogram; later positions share the last one.
MOST_POSITIONS = 24
FEWEST_POSITIONS = 8


@dataclass(frozen=True)
class Metric:
    """One metric of one subject: value and drop with their intervals, already in words."""

    value: str
    drop: str
    drop_interval: str


@dataclass(frozen=True)
class Interval:
    """A drop on the plot: positions in percent."""

    low: float
    middle: float
    high: float
    label: str
    #: which metric, as an index
    metric: int


@dataclass(frozen=True)
class Gate:
    """One gate of the pipeline file."""

    name: str
    words: str
    passed: bool


@dataclass(frozen=True)
class Subject:
    """One target, precision and mode on one data set."""

    name: str
    items: int
    agreement: str
    metrics: list[Metric]
    #: of metrics whose drop is not known to be zero
    intervals: list[Interval | None]
    gates: list[Gate]
    divergence: Json | None

    @property
    def intervals_known(self) -> bool:
        """Whether any metric has a drop to plot."""
        return any(self.intervals)

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(gate.passed for gate in self.gates)


@dataclass(frozen=True)
class Histogram:
    """First tokens that differ: (position, count, bar's height in percent)."""

    name: str
    count: int
    bars: list[tuple[str, int, float]]


@dataclass(frozen=True)
class WorstCase:
    """One item with the checkpoint's answer and those that are worse."""

    item: str
    text: str
    image: str | None
    references: list[str]
    checkpoint: str
    answers: list[tuple[str, str, bool]]


@dataclass(frozen=True)
class Evaluation:
    """One task on one data set."""

    anchor: str
    heading: str
    description: str
    #: items the checkpoint answered
    items: int
    metric_titles: list[str]
    checkpoint: list[str]
    subjects: list[Subject]
    histograms: list[Histogram]
    #: largest absolute drop on the plot, as a share of its metric's range
    scale: str
    worst: list[WorstCase]

    @property
    def gated(self) -> bool:
        """Whether the pipeline file has gates for any target."""
        return any(subject.gates for subject in self.subjects)

    @property
    def plotted(self) -> bool:
        """Whether there is any drop to plot."""
        return any(subject.intervals_known for subject in self.subjects)

    @property
    def differing(self) -> bool:
        """Whether any target gives another answer than the checkpoint."""
        return any(differs for case in self.worst for _, _, differs in case.answers)


def evaluations(sources: Sources) -> list[Evaluation]:
    """Every result file, ready for print; one that lacks something becomes a notice."""
    found = []
    for path, data in sources.results.get("evaluation", []):
        try:
            found.append(_evaluation(path, data))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            sources.unreadable.append(f"{shown(path)}: damaged ({error!r}); run make evaluate")
    return found


def failed_gates(results: list[Evaluation]) -> list[str]:
    """One line per gate that does not hold."""
    return [
        f"{result.heading}, {subject.name}: {gate.words}"
        for result in results
        for subject in result.subjects
        for gate in subject.gates
        if not gate.passed
    ]


def _evaluation(path: Path, data: Json) -> Evaluation:
    metrics = list(data["metrics"])
    ranges = {str(metric["name"]): float(metric["range"]) for metric in metrics}
    largest = max((abs(v) for s in data["subjects"] for v in _drops(s, ranges)), default=0.0) or 1.0
    subjects = [_subject(item, ranges, largest) for item in data["subjects"]]
    data_set = data["data_set"]
    task = task_name(str(data["task"]))
    heading = f"{task}, {data_set['name']}"
    own = data["checkpoint"]["metrics"]
    return Evaluation(
        anchor=f"evaluation-{len(path.stem)}-{path.stem}",
        heading=heading,
        items=data["checkpoint"]["items"],
        description=f"{data_set['items']} items of {data_set['source']}",
        metric_titles=[str(metric["title"]) for metric in metrics],
        checkpoint=[
            _value((own.get(name) or {}).get("value"), top) for name, top in ranges.items()
        ],
        subjects=subjects,
        histograms=list(_histograms(data["subjects"])),
        scale=percent(largest),
        worst=_worst(path.parent, data["subjects"]),
    )


def _drops(subject: Json, ranges: dict[str, float]) -> Iterator[float]:
    """All drops and their bounds, as shares of their metrics' ranges."""
    for name, metric in subject["metrics"].items():
        for key in ("drop", "drop_low", "drop_high"):
            if is_number(metric.get(key)):
                yield metric[key] / ranges[name]


def _subject(data: Json, ranges: dict[str, float], largest: float) -> Subject:
    metrics = [(data["metrics"].get(name) or {}, top) for name, top in ranges.items()]
    agreement = data["agreement"]
    name = _name(data)
    return Subject(
        name=name,
        items=data["items"],
        agreement=f"{agreement['same']} / {agreement['compared']}",
        metrics=[_metric(metric, top) for metric, top in metrics],
        intervals=[
            _interval(index, metric, largest * top) for index, (metric, top) in enumerate(metrics)
        ],
        gates=[_gate(gate) for gate in data.get("gates") or []],
        divergence=data.get("divergence"),
    )


def _name(data: Json) -> str:
    return Way(str(data["target"]), str(data["precision"]), str(data.get("mode") or "")).name


def _metric(data: Json, top: float) -> Metric:
    low, high = data.get("drop_low"), data.get("drop_high")
    interval = f"{_signed(low, top)} to {_signed(high, top)}" if is_number(low) else ""
    return Metric(
        _value(data.get("value"), top),
        _signed(data.get("drop"), top),
        interval if low or high else "",
    )


def _value(value: Any, top: float) -> str:
    return percent(value) if top == 1 else decimal(value, 4)


def _signed(value: Any, top: float) -> str:
    if not is_number(value):
        return "–"
    if value == 0:
        return "0"
    words = f"{100 * value:+.2g} %" if top == 1 else f"{value:+.2g}"
    return words.replace("-", "−")


def _interval(index: int, metric: Json, largest: float) -> Interval | None:
    places = [metric.get(key) for key in ("drop_low", "drop", "drop_high")]
    if not is_number(places[1]) or not any(places):
        return None
    low, middle, high = (
        round(50 + 50 * (place if is_number(place) else places[1]) / largest, 2) for place in places
    )
    return Interval(low, middle, high, f"drop {_signed(places[1], 0)}", index)


def _gate(data: Json) -> Gate:
    least = data["name"] == "agreement"
    words = (
        f"{data['name']} {'' if least else 'drop '}{decimal(data['value'], 4)}, "
        f"{'at least' if least else 'at most'} {decimal(data['limit'], 4)}"
    )
    return Gate(str(data["name"]), words, bool(data["passed"]))


def _histograms(subjects: list[Json]) -> Iterator[Histogram]:
    for data in subjects:
        positions = {
            int(position): int(count)
            for position, count in ((data.get("divergence") or {}).get("positions") or {}).items()
        }
        if not positions:
            continue
        bars: dict[str, int] = {
            str(place): positions.get(place, 0)
            for place in range(min(max(max(positions) + 1, FEWEST_POSITIONS), MOST_POSITIONS - 1))
        }
        if later := sum(n for p, n in positions.items() if p >= MOST_POSITIONS - 1):
            bars[f"{MOST_POSITIONS - 1}+"] = later
        top = max(bars.values())
        yield Histogram(
            _name(data),
            sum(positions.values()),
            [(place, count, round(100 * count / top, 1)) for place, count in bars.items()],
        )


def _worst(folder: Path, subjects: list[Json]) -> list[WorstCase]:
    """The worst cases of all subjects, one entry per item; items on which answers differ first."""
    found: dict[tuple[str, str], list[tuple[Json, str]]] = {}
    for subject in subjects:
        for case in subject.get("worst") or []:
            asked = (str(case["item"]), str(case.get("text") or ""))
            found.setdefault(asked, []).append((case, _name(subject)))
    order = sorted(
        found.values(),
        key=lambda cases: (
            -sum(bool(case["differs"]) for case, _ in cases),
            min(_score(case) for case, _ in cases),
        ),
    )
    differing = sum(any(case["differs"] for case, _ in cases) for cases in order)
    shown_now = min(MOST_CASES, max(differing, FEWEST_CASES))
    return [_case(folder, cases) for cases in order[:shown_now]]


def _score(case: Json) -> float:
    return float(case["score"]) if is_number(case.get("score")) else 0.0


def _case(folder: Path, cases: list[tuple[Json, str]]) -> WorstCase:
    first = cases[0][0]
    return WorstCase(
        item=str(first["item"]),
        text=str(first.get("text") or ""),
        image=_thumbnail(folder, first.get("image")),
        references=[str(reference) for reference in (first.get("references") or [])[:3]],
        checkpoint=str(first["checkpoint"]),
        answers=_merged(cases),
    )


def _merged(cases: list[tuple[Json, str]]) -> list[tuple[str, str, bool]]:
    """(targets, answer, differs), one entry per distinct answer."""
    targets: dict[tuple[str, bool], list[str]] = {}
    for case, name in cases:
        targets.setdefault((str(case["answer"]), bool(case["differs"])), []).append(name)
    return [("; ".join(names), answer, differs) for (answer, differs), names in targets.items()]


def _thumbnail(folder: Path, name: Any) -> str | None:
    """The picture beside the result file, or None when it is not there or lies elsewhere."""
    if not isinstance(name, str):
        return None
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            return embedded(image)
    except (OSError, ValueError):
        return None
