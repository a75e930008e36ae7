"""Joins verdicts: what was found out about the very bytes of an artifact stays true of them.

A check is about *sets*: all components of a task on one target in one precision, and those of the
task's ONNX. A verdict holds a digest of each set; a check of another digest is stale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
#: component -> manifest; a manifest may serve several components
Components = Mapping[str, str]

_SUBJECT = ("gap", "task", "component", "target", "precision", "kind", "variant")


@dataclass(frozen=True)
class Joined:
    """A verdict made of several, and what of them is not in it."""

    verdict: Json
    #: sets that changed between the verdicts -> how many checks were of the older bytes
    stale: dict[str, int]


def set_name(task: str, target: str, precision: str) -> str:
    """How a verdict calls all components of a task on one target in one precision."""
    return f"{task} {target} {precision}"


def own_set(check: Mapping[str, Any]) -> str:
    """The set that a check is about."""
    return set_name(check["task"], check["target"], check["precision"])


def sets_of(check: Mapping[str, Any]) -> set[str]:
    """The sets that decide a check's result; of the rules of searching, none does."""
    if check["gap"] == "search_rules":
        return set()
    return {set_name(check["task"], "onnx", "f32"), own_set(check)}


def runs_of(verdict: Json) -> list[Json]:
    """The runs that made a verdict; one of the first version knows its tools alone."""
    return list(verdict.get("runs") or [{"tools": verdict.get("tools") or {}}])


def tools_of(verdict: Json) -> dict[str, set[str]]:
    """Every tool that verified something, with all versions that did."""
    versions: dict[str, set[str]] = {}
    for run in runs_of(verdict):
        for tool, version in (run.get("tools") or {}).items():
            versions.setdefault(str(tool), set()).add(str(version))
    return versions


def carried(before: Json | None, now: Json, on_disk: Mapping[str, str]) -> Json:
    """What a run found, with what an earlier verdict says of artifacts that are still the same.

    Args:
        before: the earlier verdict.
        now: of this run; a set that it covered whole takes nothing from the earlier one.
        on_disk: digest of every set as it is now.
    """
    if before is None or before.get("pipeline") != now["pipeline"]:
        return now
    covered = answered(now["checks"]) - set(now["not_simulated"])
    same = {name for name in before.get("sets") or {} if _digest(before, name) == on_disk.get(name)}
    kept = [
        check
        for check in before["checks"]
        if own_set(check) not in covered and sets_of(check) <= same
    ]
    later = [name for name in before["not_simulated"] if name in same]
    joined = join([{**before, "checks": kept, "not_simulated": later, "error": None}, now]).verdict
    # A run that found out nothing new is no news: commit and time of the first stay.
    return before if _plain(joined) == _plain(before) else joined


def join(verdicts: Sequence[Json]) -> Joined:
    """Joins verdicts of one pipeline; of two about the same, the newer one counts.

    A set that differs between verdicts is as the newest has it; checks of the others are stale.
    """
    ordered = sorted(verdicts, key=lambda verdict: max(map(_time, runs_of(verdict))))
    sets: dict[str, Json] = {}
    artifacts: dict[str, Any] = {}
    for verdict in ordered:
        used = {name for check in verdict["checks"] for name in sets_of(check)}
        for name in used & (verdict.get("sets") or {}).keys():
            sets[name] = verdict["sets"][name]
            paths = sets[name]["components"].values()
            artifacts |= {path: verdict["artifacts"][path] for path in paths}
    runs: list[Json] = []
    stale: dict[str, int] = {}
    newest: dict[tuple[Any, ...], Json] = {}
    for verdict in ordered:
        for check in verdict["checks"]:
            other = [
                n for n in sets_of(check) if _digest(verdict, n) != sets.get(n, {}).get("sha256")
            ]
            if other or (sets_of(check) and "sets" not in verdict):
                stale[own_set(check)] = stale.get(own_set(check), 0) + 1
                continue
            run = runs_of(verdict)[check.get("run", 0)]
            known = newest.get(_subject(check))
            if known is None or _time(run) >= _time(runs[known["run"]]):
                if run not in runs:
                    runs.append(run)
                newest[_subject(check)] = {**check, "run": runs.index(run)}
    used_runs = sorted({check["run"] for check in newest.values()})
    checks = [{**check, "run": used_runs.index(check["run"])} for check in newest.values()]
    listed = {path for one in sets.values() for path in one["components"].values()}
    left = dict.fromkeys(name for verdict in ordered for name in verdict.get("not_simulated") or [])
    errors = dict.fromkeys(str(verdict["error"]) for verdict in ordered if verdict.get("error"))
    joined = {
        "passed": bool(checks) and not errors and all(check["passed"] for check in checks),
        "checks": checks,
        "pipeline": ordered[-1].get("pipeline"),
        "not_simulated": [name for name in left if name not in answered(checks)],
        "artifacts": {path: files for path, files in artifacts.items() if path in listed},
        "sets": sets,
        "runs": [runs[index] for index in used_runs],
        **({"error": "; ".join(errors)} if errors else {}),
    }
    return Joined(joined, stale)


def proven(
    checks: Iterable[Mapping[str, Any]],
    sets: Mapping[str, Components],
    not_simulated: Iterable[str] = (),
) -> set[str]:
    """Manifests of the artifacts that are verified.

    Each of their components was compared, whole answers of their set were, and all of it passed.
    """
    every = [check for check in checks if check["gap"] != "search_rules"]
    failed = {(own_set(c), c["component"]) for c in every if not c["passed"]}
    compared = {(own_set(c), c["component"]) for c in every if c["kind"] == "component"}
    whole = answered(every) - set(not_simulated)
    found: set[str] = set()
    doubtful: set[str] = set()
    for name, components in sets.items():
        sound = name in whole and (name, None) not in failed
        for component, path in components.items():
            one = (name, component)
            good = sound and one in compared and one not in failed
            (found if good else doubtful).add(path)
    return found - doubtful


def proven_in(verdict: Json) -> set[str]:
    """Manifests of the artifacts that a verdict proves."""
    sets = {name: one["components"] for name, one in (verdict.get("sets") or {}).items()}
    return proven(verdict["checks"], sets, verdict.get("not_simulated") or [])


def answered(checks: Iterable[Mapping[str, Any]]) -> set[str]:
    """Sets whose whole answers were compared."""
    return {own_set(check) for check in checks if check["kind"] in ("tokens", "scores")}


def _digest(verdict: Json, name: str) -> str | None:
    one = (verdict.get("sets") or {}).get(name)
    return one["sha256"] if one else None


def _subject(check: Mapping[str, Any]) -> tuple[Any, ...]:
    # Rules of searching belong to no task.
    left_out = ("task",) if check["gap"] == "search_rules" else ()
    return tuple(check.get(name) for name in _SUBJECT if name not in left_out)


def _plain(verdict: Json) -> Json:
    """A verdict without who found it out, when and how long that took."""
    checks = {
        _subject(check): {k: v for k, v in check.items() if k not in ("run", "seconds")}
        for check in verdict["checks"]
    }
    return {
        **{k: v for k, v in verdict.items() if k not in ("runs", "schema_version")},
        "checks": checks,
    }


def _time(run: Json) -> str:
    return str(run.get("time") or "")
