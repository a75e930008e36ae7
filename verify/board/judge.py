"""Judges what a board sent back, with the tolerances that simulated artifacts are held to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.errors import InputError, ParityError
from configs.layout import Layout
from configs.load import shown, target_names
from configs.schema import Component, Task
from configs.tolerances import Gate, Tolerance, load_tolerances, record
from pipeline.atomic import write_atomically
from pipeline.command import select
from pipeline.console import messages
from pipeline.json_file import read_object
from pipeline.manifest import file_sha256
from runtime.board_test import BUNDLE_FILE
from runtime.tasks.artifacts import SIMULATOR
from verify.answers.quality import asked_agreement, usual_agreement
from verify.answers.whole_answers import gate_record
from verify.artifacts import TargetArtifacts, TaskArtifacts, arithmetic, find_artifacts
from verify.board.bundle import bundle_folder
from verify.board.consistency import contradiction, references
from verify.board.results import BoardResults, ComponentResult, TaskResult, read_results
from verify.board.times import print_times, task_times
from verify.parity.compare import number
from verify.parity.components import MOST_PROBLEMS, SMALL_OUTPUT
from verify.results import Check, Subject

#: Kept beside verify.json, one per chip and set.
VERDICT = "verify-board-{target}_{precision}.json"


def judge(config: Path, path: Path) -> list[Check]:
    """The checks of a results file; writes them beside verify.json.

    Raises:
        InputError: not a results file, or of other artifacts than those built here.
    """
    results = read_results(path)
    if results.target not in target_names():
        raise InputError(
            f"{shown(path)}: target: {results.target!r} is no target of this project; "
            f"choose from: {', '.join(target_names())}"
        )
    selection = select(
        config,
        target=results.target,
        precision=results.precision,
        task=",".join(results.tasks) or None,
    )
    if results.pipeline != selection.pipeline.name:
        raise InputError(
            f"{shown(path)}: made with pipeline {results.pipeline!r}, {shown(config)} is "
            f"{selection.pipeline.name!r}; pass the right --config"
        )
    folder = bundle_folder(Layout(selection.pipeline), results.target, results.precision)
    bundle = _bundle(folder / BUNDLE_FILE, results, path)
    missing = sorted(set(bundle["tasks"]) - set(results.tasks))
    if missing:
        raise InputError(f"{shown(path)}: tasks: no {', '.join(missing)}; run the whole folder")
    checks: list[Check] = []
    times: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for task in find_artifacts(selection):
        (artifacts,) = task.targets
        expected = bundle["tasks"][task.task]
        checks += _components(task, artifacts, expected, results.tasks[task.task], path, folder)
        times[task.task] = task_times(artifacts.components.values(), results.tasks[task.task])
        asked = asked_agreement(selection.pipeline, task.task, artifacts, "", shown(config))
        gate = asked or usual_agreement(artifacts, "")
        checks.append(_answers(task, artifacts, expected, results.tasks[task.task], gate))
    verdict = Layout(selection.pipeline).root / VERDICT.format(
        target=results.target, precision=results.precision
    )
    record = {
        **{"passed": all(check.passed for check in checks), "bundle": results.bundle_sha256},
        "device": results.device,
        "checks": [check.record() for check in checks],
        "times": times,
        "bmrt_test_lines": {task: found.bmrt_test_lines for task, found in results.tasks.items()},
    }
    write_atomically(verdict, json.dumps(record, indent=1) + "\n")
    if results.device == SIMULATOR:
        messages.print(
            f"{shown(path)}: made on the simulator: parity counts, milliseconds mean nothing",
            markup=False,
        )
    else:
        print_times(times)
    return checks


def failure(checks: list[Check]) -> ParityError | None:
    """What to raise for failed checks."""
    failed = [check for check in checks if not check.passed]
    if not failed:
        return None
    first = failed[0]
    return ParityError(
        f"{len(failed)} of {len(checks)} checks failed on the board: {first.subject.name}: "
        f"{first.problems[0]}; compare with the simulator: make verify VERIFY=full"
    )


def _bundle(description: Path, results: BoardResults, path: Path) -> dict[str, Any]:
    rebuild = f"run: make board-test TARGET={results.target}"
    if not description.is_file():
        raise InputError(f"{shown(description)}: missing, so nothing to compare with; {rebuild}")
    if file_sha256(description) != results.bundle_sha256:
        raise InputError(
            f"{shown(path)}: made with another board-test folder than {shown(description.parent)}; "
            "copy that one to the board and run it again"
        )
    bundle: dict[str, Any] = read_object(description)
    unknown = sorted(set(results.tasks) - set(bundle["tasks"]))
    if unknown:
        raise InputError(f"{shown(path)}: tasks: {unknown[0]!r} is not in the board-test folder")
    return bundle


def _components(
    task: TaskArtifacts,
    artifacts: TargetArtifacts,
    expected: Mapping[str, Any],
    found: TaskResult,
    path: Path,
    folder: Path,
) -> Iterator[Check]:
    if set(found.components) != set(expected["components"]):
        raise InputError(
            f"{shown(path)}: tasks.{task.task}.components: {sorted(found.components)} instead of "
            f"{sorted(expected['components'])}; run the whole folder"
        )
    for component, manifest in artifacts.components.items():
        result = found.components[component]
        if result.key != manifest.key:
            raise InputError(
                f"{shown(path)}: {task.task} {component}: measured on another artifact than the "
                f"one built here; run: make board-test TARGET={artifacts.name}, and the board again"
            )
        subject = _subject(task.task, component, artifacts)
        tolerance = load_tolerances().component(
            gap="onnxruntime_vs_target",
            target=artifacts.name,
            precision=artifacts.stored(component),
            arithmetic=arithmetic(artifacts, "", component),
            component=component,
        )
        described = expected["components"][component]
        known = references(folder, described)
        yield _component(subject, described["cases"], known, result, tolerance)


def _subject(task: Task, component: Component | None, artifacts: TargetArtifacts) -> Subject:
    gap: Any = "onnxruntime_vs_target" if component else "tokens"
    kind: Any = "component" if component else "tokens"
    return Subject(gap, task, component, artifacts.name, artifacts.precision, kind, "board")


def _component(
    subject: Subject,
    expected: list[Any],
    known: list[dict[str, dict[str, Any]]],
    result: ComponentResult,
    tolerance: Tolerance,
) -> Check:
    problems: list[str] = []
    names = [case["name"] for case in expected]
    if [case.name for case in result.cases] != names:
        problems.append("cases are not those of the folder")
    sums: dict[str, list[Any]] = {}
    for wanted, references_of, case in zip(expected, known, result.cases, strict=False):
        if set(case.outputs) != set(wanted["outputs"]):
            problems.append(f"{case.name}: outputs are not those of the folder")
        for output, figures in case.outputs.items():
            if figures.problem is not None or figures.elements == 0 or figures.scale == 0.0:
                reason = figures.problem or "nothing was compared"
                problems.append(f"{case.name}: {output}: {reason}")
                continue
            right = references_of.get(output)
            if right is not None and (wrong := contradiction(figures, right)):
                problems.append(f"{case.name}: {output}: {wrong}")
            sums.setdefault(output, []).append(figures)
    worst_error, worst_cosine = 0.0, 1.0
    for output, every in sums.items():
        error = max(one.max_abs for one in every) / max(one.scale for one in every)
        pooled = [every] if every[0].elements < SMALL_OUTPUT else [[one] for one in every]
        cosine = min(_cosine(group) for group in pooled)
        # Written so that NaN fails.
        if not error <= tolerance.max_relative_error:
            limit = tolerance.max_relative_error
            problems.append(f"{output}: relative error {error:.2e} exceeds {limit:.1e}")
        if not cosine >= tolerance.min_cosine:
            problems.append(f"{output}: cosine {cosine:.7f} is below {tolerance.min_cosine}")
        worst_error, worst_cosine = max(worst_error, error), min(worst_cosine, cosine)
    if not sums:
        problems.append("nothing was compared")
    metrics = {
        **{"relative_error": number(worst_error), "cosine": number(worst_cosine)},
        "latency_ms": result.latency_ms,
    }
    problems = problems[:MOST_PROBLEMS]
    return Check(subject, len(result.cases), metrics, record(tolerance), tuple(problems))


def _cosine(figures: list[Any]) -> float:
    product = sum(one.product for one in figures)
    norms = math.sqrt(sum(one.reference_square for one in figures))
    norms *= math.sqrt(sum(one.square for one in figures))
    # A product beyond the norms is no inner product of anything.
    return min(1.0, product / norms) if norms and product <= norms * (1 + 1e-6) else math.nan


def _answers(
    task: TaskArtifacts,
    artifacts: TargetArtifacts,
    expected: Mapping[str, Any],
    found: TaskResult,
    gate: Gate,
) -> Check:
    subject = _subject(task.task, None, artifacts)
    problems: list[str] = []
    wanted = expected["answers"]
    if len(found.answers) != len(wanted):
        problems.append(f"{len(found.answers)} answers instead of {len(wanted)}")
    same = 0
    for answer, truth in zip(found.answers, wanted, strict=False):
        if task.task == "itm":
            given = answer.probability
            same += given is not None and (given > 0.5) == (truth["probability"] > 0.5)
        else:
            same += answer.token_ids == tuple(truth["token_ids"])
    rate = same / len(wanted) if wanted else 0.0
    if rate < gate.min_agreement:
        problems.append(f"{same} of {len(wanted)} answers equal the checkpoint's")
    milliseconds = [answer.milliseconds for answer in found.answers]
    metrics = {"exact_match_rate": rate, "exact": same, "milliseconds": milliseconds}
    return Check(subject, len(found.answers), metrics, gate_record(gate), tuple(problems))
