"""The parity verdict of one bundle: every check that its very digests need, out of verify.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import BlipEdgeError, InputError, ParityError
from configs.layout import Layout
from configs.load import shown
from configs.schema import Task
from configs.tolerances import TOLERANCES_FILE
from pipeline.command import Selection
from pipeline.json_file import WRONG
from pipeline.manifest import file_sha256
from runtime.bundles.shipped import Shipped, shipped
from verify.artifacts import TargetArtifacts, TaskArtifacts, find_artifacts, runtime_failures
from verify.plan import make_plan, simulated_by_default
from verify.results import Check
from verify.verdict import read_verdict

#: What a run happened to cost is no part of a verdict: two runs give the same bundle.
_COSTS = ("seconds",)


@dataclass(frozen=True)
class Verdict:
    """What verification found about the artifacts of one task, target and precision."""

    task: TaskArtifacts
    target: TargetArtifacts
    shipped: Shipped
    checks: tuple[Check, ...]
    #: checks that are needed and were not done on these digests, or whose result is unknown
    missing: tuple[str, ...]
    #: why nothing could be read off verify.json, or None
    unread: str | None
    tools: Mapping[str, Any]

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def passed(self) -> bool:
        """Whether every check was done on exactly these files, and passed."""
        return bool(self.checks) and not self.missing and not self.failed

    def predicate(self, pipeline: str) -> dict[str, Any]:
        """What the statement about it says (docs/bundles.md)."""
        root = self.shipped.task.folder.parent
        digests = self.shipped.digests
        records = [check.record() for check in self.checks]
        return {
            "pipeline": pipeline,
            "task": self.task.task,
            "target": self.target.name,
            "precision": self.target.precision,
            "passed": self.passed,
            "artifacts": {path.relative_to(root).as_posix(): digests[path] for path in digests},
            "graphs": {
                name: record.sha256
                for manifest in self.task.onnx.components.values()
                for name, record in sorted(manifest.runtime_files.items())
            },
            "weights_sha256": self.task.manifest.checkpoint.weights_sha256,
            "device": "vendor's simulator" if self.target.simulated else "processor",
            "tolerances_sha256": file_sha256(TOLERANCES_FILE),
            "tools": dict(self.tools),
            "checks": [{k: v for k, v in r.items() if k not in _COSTS} for r in records],
            "not_checked": list(self.missing),
        }


def read_verdict_of(selection: Selection) -> Verdict:
    """What verify.json says about a selection of one task, target and precision.

    The plan of a verification names, by keys, the checks of exactly these files by exactly these
    tolerances: what verify.json holds of other files or tolerances has other keys.

    Raises:
        InputError: an artifact is missing, damaged or stale.
    """
    (task,) = find_artifacts(selection)
    (target,) = task.targets
    plan = make_plan(selection, [task], Path(shown(selection.file)), full=True)
    path = Layout(selection.pipeline).verdict
    found: dict[str, dict[str, Any]] = {}
    unread: str | None = None
    runs: list[dict[str, Any]] = []
    try:
        verdict = read_verdict(path)
        found = {check["key"]: check for check in verdict["checks"]}
        # One run wrote it, or several that were joined.
        runs = verdict.get("runs") or [verdict]
    except FileNotFoundError:
        unread = f"{shown(path)}: missing"
    except WRONG as error:
        unread = f"{shown(path)}: {error}"
    done = [found[item.key] for item in plan.checks if item.key in found]
    tools = {
        name: version
        for index, run in enumerate(runs)
        if any(check.get("run", 0) == index for check in done)
        for name, version in (run.get("tools") or {}).items()
    }
    components = list(target.components.values())
    with runtime_failures():
        files = shipped(task.manifest, components)
    missing = tuple(item.subject.name for item in plan.checks if item.key not in found)
    checks = tuple(map(Check.of, done))
    return Verdict(task, target, files, checks, missing, unread, tools)


def refusal(verdict: Verdict, selection: Selection) -> BlipEdgeError | None:
    """Why there is no bundle of these artifacts, and what to do; None if they are verified."""
    if verdict.passed:
        return None
    task, target = verdict.task.task, verdict.target
    what = f"{task} {target.name} {target.precision}"
    cure = f"run: {_verify_command(selection, task, verdict)}, or bundle it with UNVERIFIED=1"
    if verdict.failed:
        check = verdict.failed[0]
        reason = f"{check.subject.name}: {check.record()['problems'][0]}"
        return ParityError(f"{what}: verification failed: {reason}; {cure}")
    count = len(verdict.missing)
    every = count + len(verdict.checks)
    reason = verdict.unread or f"first: {verdict.missing[0]}"
    return InputError(
        f"{what}: {count} of {every} checks were not done on these files by these tolerances "
        f"({reason}); {cure}"
    )


def _verify_command(selection: Selection, task: Task, verdict: Verdict) -> str:
    target = verdict.target
    large = target.simulated and not simulated_by_default(selection, target)
    return (
        f"make verify CONFIG={shown(selection.file)} TASK={task} TARGET={target.name} "
        f"PRECISION={target.precision}{' VERIFY=full' if large else ''}"
    )
