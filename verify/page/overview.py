"""The first screen: the verdict in one sentence, one cell per task and way of running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from verify.page.checks import Row, Way, tightest, ways
from verify.page.decision import Cost, cost_of
from verify.page.figures import LogAxis, component_name, exponent, task_name, times
from verify.page.sources import Sources
from verify.verdicts.merging import proven, runs_of, set_name

State = Literal["passed", "failed", "incomplete"]

#: Names that one notice lists.
MOST_NAMES = 4
#: Headline and symbol of each state; the symbol's shape tells states apart without colour.
HEADLINES: dict[State, str] = {
    "passed": "Verified",
    "failed": "Not verified",
    "incomplete": "Verdict incomplete",
}


@dataclass(frozen=True)
class Cell:
    """One task on one target."""

    state: State
    exact: str
    #: the largest of any component, and what is allowed there
    error: str
    allowed: str


@dataclass(frozen=True)
class Mark:
    """One check on the margin plot."""

    position: float
    title: str
    passed: bool


@dataclass(frozen=True)
class Line:
    """One way of running, over all tasks."""

    way: Way
    cells: list[Cell | None]
    marks: list[Mark]
    cost: Cost


@dataclass(frozen=True)
class Overview:
    """What stands above the fold."""

    state: State
    headline: str
    sentence: str
    #: manifests of verified artifacts, and how many artifacts there are
    proved: set[str]
    artifacts: int
    #: why the verdict is not about everything that lies there, one line each
    notices: list[str]
    #: what checks are about
    tasks: list[str]
    targets: list[str]
    lines: list[Line]
    axis: LogAxis
    failed: list[Row]
    #: gates of the evaluation that do not hold, one line each
    gates: list[str]
    #: what the verdict is not about, whatever it says
    caveats: list[str]


def overview(sources: Sources, every: Sequence[Row], gates: Sequence[str] = ()) -> Overview:
    """Sums a verification up; ``gates`` are the evaluation's gates that do not hold."""
    failed = [row for row in every if not row.passed]
    notices = _notices(sources, every)
    error = sources.verdict.get("error")
    passed = bool(sources.verdict.get("passed")) and bool(every) and not failed
    proved = proven_on_disk(sources, every)
    artifacts = len(sources.components.keys() | (sources.verdict.get("artifacts") or {}).keys())
    if failed or gates or (error and not every):
        state: State = "failed"
    else:
        state = "passed" if passed and len(proved) == artifacts else "incomplete"
    tasks = list(dict.fromkeys(row.task for row in every))
    axis = LogAxis.around([1.0, *(row.used for row in every)])
    axis = LogAxis(max(axis.low, -6), max(axis.high, 1))
    lines = [_line(way, tasks, every, axis, cost_of(sources, way)) for way in ways(every)]
    sentence = _sentence(every, failed, gates, str(error) if error else "")
    extent = "" if len(proved) == artifacts else f"{len(proved)} of {artifacts} artifacts verified"
    headline = extent if state == "incomplete" and extent else HEADLINES[state]
    if extent and state == "failed" and every:
        sentence = f"{sentence} {extent}."
    return Overview(
        state,
        headline,
        sentence,
        proved,
        artifacts,
        notices,
        tasks,
        list(dict.fromkeys(row.way.target for row in every)),
        lines,
        axis,
        failed,
        list(gates),
        _caveats(lines),
    )


def _caveats(lines: Sequence[Line]) -> list[str]:
    chips = [line for line in lines if line.way.target not in ("onnx", "openvino")]
    found = []
    if chips:
        found.append("Chips ran on the vendor's bit-level simulator, not on silicon.")
        if any(line.cost.times_are == "estimated" for line in chips):
            found.append("Times of chips are the compiler's estimates.")
    openvino = [line for line in lines if line.way.target == "openvino"]
    if openvino and not any(line.cost.times_are for line in openvino):
        found.append("OpenVINO was not timed; run: make bench")
    return found


def proven_on_disk(sources: Sources, every: Sequence[Row]) -> set[str]:
    """Manifests of the artifacts that lie there as they were verified."""
    sets: dict[str, dict[str, str]] = {}
    for path, one in sources.components.items():
        parts = dict.fromkeys((one.component, *one.includes), path)
        sets.setdefault(set_name(one.task, one.target, one.precision), {}).update(parts)
    verdict = sources.verdict
    found = proven([row.record for row in every], sets, verdict.get("not_simulated") or [])
    return found & (verdict.get("artifacts") or {}).keys() - set(_outdated(sources))


def _sentence(every: Sequence[Row], failed: Sequence[Row], gates: Sequence[str], error: str) -> str:
    if not every:
        return error or "Nothing was compared."
    lost = f" {_count(len(gates), 'gate')} of the evaluation not reached." if gates else ""
    if failed:
        return f"{len(failed)} of {_count(len(every), 'check')} failed.{lost}"
    passed = f"All {len(every)} checks passed.{lost}"
    closest = tightest(every)
    if closest is None or gates:
        return passed
    return (
        f"{passed} The least margin is {times(closest.margin)}: "
        f"{task_name(closest.task).lower()}, {component_name(closest.part)}, {closest.name}."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _notices(sources: Sources, every: Sequence[Row]) -> list[str]:
    again = f"make verify CONFIG={sources.config}"
    found = []
    if outdated := _outdated(sources):
        names = ", ".join(outdated[:MOST_NAMES]) + _more(len(outdated))
        found.append(f"Rebuilt or removed after it was verified: {names}; run: {again}")
    found += [
        f"Not simulated: {name}. A full verification does it; run: {again} VERIFY=full"
        for name in sources.verdict.get("not_simulated") or []
    ]
    unseen = sorted(not_covered(sources, every))
    if unseen and every:
        names = ", ".join(unseen[:MOST_NAMES]) + _more(len(unseen))
        found.append(f"Built, but not part of this verdict: {names}; run: {again}")
    found += [f"Stopped: {error}" for error in [sources.verdict.get("error")] if error and every]
    if unbuilt := _not_built(sources):
        names = ", ".join(unbuilt[:MOST_NAMES]) + _more(len(unbuilt))
        found.append(f"Of the pipeline file, but not built: {names}")
    commits = dict.fromkeys(str(run.get("commit") or "?")[:12] for run in runs_of(sources.verdict))
    if len(commits) > 1:
        found.append(f"Verified at several commits: {', '.join(commits)}")
    return found + [f"Not readable: {line}" for line in sources.unreadable]


def _not_built(sources: Sources) -> list[str]:
    """Sets of the pipeline file that do not lie there."""
    there = {(one.task, one.target, one.precision) for one in sources.components.values()}
    return [
        set_name(task, target, precision)
        for task in sources.pipeline.tasks
        for target, selection in sources.pipeline.targets.items()
        for precision in selection.precisions
        if (task, target, precision) not in there
    ]


def _more(count: int) -> str:
    return f" and {count - MOST_NAMES} more" if count > MOST_NAMES else ""


def _outdated(sources: Sources) -> list[str]:
    """Manifests whose files are other ones than those verified, or gone."""
    return [
        path
        for path, files in (sources.verdict.get("artifacts") or {}).items()
        if _digests(sources, path) != files
    ]


def _digests(sources: Sources, path: str) -> dict[str, str] | None:
    manifest = sources.components.get(path)
    if manifest is None:
        return None
    return {name: record.sha256 for name, record in sorted(manifest.files.items())}


def not_covered(sources: Sources, every: Sequence[Row]) -> set[str]:
    """Sets of artifacts that were built but that no check is about."""
    seen = {(row.task, row.way.target, row.way.precision) for row in every}
    simulated_later = set(sources.verdict.get("not_simulated") or [])
    names = {
        f"{m.task} {m.target} {m.precision}"
        for m in sources.components.values()
        if (m.task, m.target, m.precision) not in seen
    }
    return names - simulated_later


def _line(way: Way, tasks: Sequence[str], every: Sequence[Row], axis: LogAxis, cost: Cost) -> Line:
    mine = [row for row in every if row.way == way]
    marks = [
        Mark(
            axis.position(row.used),
            f"{task_name(row.task)}, {component_name(row.part)}: "
            f"{_share(row.used)} of what is allowed",
            row.passed,
        )
        for row in mine
        if row.used is not None
    ]
    return Line(way, [_cell([r for r in mine if r.task == task]) for task in tasks], marks, cost)


def _share(used: float | None) -> str:
    return "nothing" if not used else f"{100 * used:.2g} %"


def _cell(mine: Sequence[Row]) -> Cell | None:
    if not mine:
        return None
    answers = [row for row in mine if row.record.get("kind") in ("tokens", "scores")]
    worst = max((row for row in mine if row.error is not None), key=_error, default=None)
    return Cell(
        "passed" if all(row.passed for row in mine) else "failed",
        answers[0].exact if answers else "",
        exponent(worst.error) if worst else "",
        worst.allowed if worst else "",
    )


def _error(row: Row) -> float:
    return row.error or 0.0


def status(sources: Sources, every: Sequence[Row], manifest: Any) -> str:
    """Of one artifact: passed, failed, not covered or not simulated."""
    mine = [
        row
        for row in every
        if (row.task, row.way.target, row.way.precision)
        == (manifest.task, manifest.target, manifest.precision)
        and row.record.get("component") in (None, manifest.component)
    ]
    if any(not row.passed for row in mine):
        return "failed"
    if any(row.record.get("component") for row in mine):
        return "passed"
    name = f"{manifest.task} {manifest.target} {manifest.precision}"
    later = name in (sources.verdict.get("not_simulated") or [])
    return "not simulated" if later else "not checked"
