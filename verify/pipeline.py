"""Does the planned checks that were not done before, and writes the verdict."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.markup import escape

from configs.errors import BlipEdgeError, ParityError, ToolError
from configs.layout import Layout
from configs.load import shown
from configs.tolerances import load_tolerances
from pipeline.atomic import artifact_lock
from pipeline.command import Selection
from pipeline.console import Steps, messages, steps
from runtime.preprocessing.processor import TextTokenizer
from verify.answers.quality import match_quality, text_quality, usual_agreement, with_quality
from verify.answers.whole_answers import generated_tokens, match_scores, score_check, token_check
from verify.artifacts import ONNX, arithmetic, find_artifacts
from verify.checkpoint.files import check_checkpoint
from verify.opened import CASES_AT_ONCE, TaskBench, forget_stale_answers
from verify.parity.combined import combined_check
from verify.parity.components import (
    hf_vs_wrapper,
    onnxruntime_vs_target,
    padded_vs_unpadded,
    wrapper_vs_onnxruntime,
)
from verify.parity.lineage import broken_lineage
from verify.plan import Plan, Planned, make_plan
from verify.results import STORE_FILE, Check, Store, Subject, passed
from verify.verdict import UNFINISHED, VerdictFile, verdict_text
from verify.verdicts.built_sets import BuiltSet, built_sets
from verify.verdicts.merging import carried, own_set, proven_in, sets_of
from verify.verdicts.run_facts import run_facts

Json = dict[str, Any]


@dataclass(frozen=True)
class Verification:
    """Outcome of one run."""

    checks: tuple[Check, ...]
    not_simulated: tuple[str, ...]
    #: how many checks were done now; the others were done before on the same inputs
    done_now: int
    verdict: Path
    #: what verify.json says: of other artifacts, too, that an earlier run verified
    joined: Json
    #: artifacts that lie in the pipeline's folder
    built: int

    @property
    def extent(self) -> str:
        """How many of the artifacts that were built are verified; empty if all are."""
        proved = len(proven_in(self.joined))
        return "" if proved == self.built else f"{proved} of {self.built} artifacts verified"

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return passed(self.checks)


def verify(selection: Selection, config: Path, *, full: bool = False) -> Verification:
    """Verifies everything selected and writes verify.json.

    Checks that passed before on the same artifacts, inputs, tolerances and code are not repeated.

    Raises:
        InputError: an artifact is missing or damaged, or the checkpoint is another one.
        ConfigError: tolerances or gates are missing.
    """
    layout, started = Layout(selection.pipeline), time.monotonic()
    load_tolerances()
    with ExitStack() as stack:
        verdict = VerdictFile(layout.verdict)
        if verdict.writable:
            stack.enter_context(artifact_lock(layout.root, "verify"))
            verdict.begin()
        try:
            tasks = find_artifacts(selection)
            for task in tasks:
                check_checkpoint(layout, task.task, task.manifest)
            plan = make_plan(selection, tasks, config, full=full)
        except BlipEdgeError as error:
            verdict.fail(str(error))
            raise
        store = Store(layout.root / STORE_FILE)
        known = {item.key: store.find(item.key) for item in plan.checks}
        todo = [item for item in plan.checks if known[item.key] is None]
        finished = {
            item.key: replace(check, subject=item.subject)
            for item in plan.checks
            if (check := known[item.key]) is not None
        }
        if todo:
            verdict.write(verdict_text([], error=UNFINISHED))
            for item, check in _run(todo, selection):
                finished[item.key] = check
                store.add(check)
            store.compact()
            forget_stale_answers(selection.pipeline)
        checks = tuple(finished[item.key] for item in plan.checks)
        built = built_sets(layout, selection.pipeline.tasks)
        now = _verdict(checks, plan, selection, built)
        on_disk = {name: one.sha256 for name, one in built.items()}

        def join(before: Json | None) -> Json:
            if before is not None and "sets" not in before:
                messages.print(
                    f"{shown(layout.verdict)}: of an earlier version; what it said is left out"
                )
            facts = run_facts(started, _particulars(selection, full=full))
            return carried(before, {**now, "runs": [facts]}, on_disk)

        joined = verdict.finish(join)
    artifacts = {path for one in built.values() for path in one.artifacts}
    return Verification(
        checks, plan.not_simulated, len(todo), layout.verdict, joined, len(artifacts)
    )


def failure(result: Verification) -> ParityError | None:
    """The one line about a failed verification, or None."""
    failed = [check for check in result.checks if not check.passed]
    if not failed and result.checks:
        return None
    if not failed:
        return ParityError("nothing was verified; name tasks and targets of the pipeline file")
    names = ", ".join(check.subject.name for check in failed[:3])
    more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
    # A tool that broke off says nothing about the artifact.
    advice = failed[0].record()["problems"][0]
    if any(check.samples for check in failed):
        advice = "Rebuild with FORCE=1; if it stays, make bisect says which layer is wrong"
    if any(check.samples and check.subject.kind == "layers" for check in failed):
        advice = "Rebuild with FORCE=1; if it stays, the artifact is wrong, not the tolerance"
    elif any(check.samples and check.subject.gap == "onnxruntime_vs_target" for check in failed):
        advice += "; if none is, the net itself amplifies rounding: choose a finer precision"
    return ParityError(
        f"{len(failed)} of {len(result.checks)} checks failed: {names}{more}; see "
        f"{shown(result.verdict)}. {advice}"
    )


def _run(todo: list[Planned], selection: Selection) -> Iterator[tuple[Planned, Check]]:
    with steps("verify", len(todo)) as progress:
        for _, of_task in groupby(todo, lambda item: item.task.task):
            items = list(of_task)
            with closing(TaskBench(items[0].task, selection.pipeline)) as bench:
                for _, grouped in groupby(items, _loaded_together):
                    group = list(grouped)
                    for item in group:
                        progress.start(item.subject.name)
                        started = time.perf_counter()
                        check = _one(item, bench, progress)
                        seconds = round(time.perf_counter() - started, 3)
                        yield item, replace(check, key=item.key, seconds=seconds)
                        progress.done(
                            None if check.passed else f"[red]failed[/] {item.subject.name}"
                        )
                    bench.release(group[0].artifacts)
                    bench.forget_checkpoint()


def _loaded_together(item: Planned) -> tuple[int, str]:
    return id(item.artifacts), item.subject.variant if item.artifacts.name != ONNX else ""


def _one(item: Planned, bench: TaskBench, progress: Steps) -> Check:
    if (broken := _of_another_graph(item)) is not None:
        return Check(item.subject, 0, {}, {}, (broken,))
    try:
        if item.subject.kind == "component":
            return _component(item, bench, progress)
        if item.subject.kind == "layers":
            return _layers(item, bench)
        if item.subject.gap == "combined_file":
            return combined_check(item.subject, item.artifacts)
        if item.subject.gap == "search_rules":
            return _search_rules(item.subject)
        if item.subject.kind == "host":
            return _host(item, bench)
        return _answers(item, bench)
    except ToolError as error:
        # One backend's failure is a finding about its artifact; the other artifacts are still
        # judged.
        return Check(item.subject, 0, {}, {}, (str(error),))


def _of_another_graph(item: Planned) -> str | None:
    """That a compiled artifact does not stem from the exported graph, and what to do."""
    if item.subject.gap not in ("onnxruntime_vs_target", "target_constants"):
        return None
    manifest = item.artifacts.components[item.subject.named_component]
    broken = broken_lineage(manifest, item.task.onnx.components)
    return f"{broken}; run: {item.artifacts.rebuild(item.subject.task)}" if broken else None


def _component(item: Planned, bench: TaskBench, progress: Steps) -> Check:
    subject, component = item.subject, item.subject.named_component
    manifest = item.artifacts.components[component]
    if subject.gap == "hf_vs_wrapper":
        return hf_vs_wrapper(subject, manifest)
    if subject.gap == "onnxruntime_vs_target":
        return onnxruntime_vs_target(
            subject,
            manifest,
            bench.session(item.artifacts, component, subject.variant),
            bench.samples(item.artifacts, component),
            arithmetic(item.artifacts, subject.variant, component),
            lambda name: progress.start(f"{subject.name}: {name}"),
        )
    if subject.variant == "padded":
        return padded_vs_unpadded(subject, manifest, bench.padded_pairs(component))
    return wrapper_vs_onnxruntime(subject, manifest, bench.session(item.artifacts, component))


def _layers(item: Planned, bench: TaskBench) -> Check:
    # Here, not above: an unchanged run must not wait for onnx to load.
    from verify.layers.checks import checkpoint_layers, exported_graph, layer_check, target_layers
    from verify.layers.chip_constants import chip_constants, constants_check

    subject, component = item.subject, item.subject.named_component
    onnx = item.task.onnx.components[component]
    if subject.gap == "target_constants":
        stored = item.artifacts.stored(component)
        target = item.artifacts.components[component]
        found = chip_constants(exported_graph(onnx), target, stored)
        return constants_check(subject, found, stored)
    if subject.gap == "checkpoint_layers":
        seed = bench.pipeline.verify.seed
        layers = checkpoint_layers(onnx, bench.checkpoint, subject.task, seed)
        return layer_check(subject, layers, "f32")
    samples = bench.samples(item.artifacts, component)
    target = item.artifacts.components[component]
    stored = item.artifacts.stored(component)
    parts = {target.component, *target.includes}
    merged = [other for part, other in item.task.onnx.components.items() if part in parts]
    layers = target_layers(onnx, target, samples, subject.variant, stored, merged)
    computed = arithmetic(item.artifacts, subject.variant)
    return layer_check(subject, layers, computed, stored)


def _search_rules(subject: Subject) -> Check:
    from verify.host.check import host_check
    from verify.host.search_rules import number_of_settings, search_rule_findings

    return host_check(subject, search_rule_findings(), number_of_settings())


def _host(item: Planned, bench: TaskBench) -> Check:
    from verify.host.check import HOST_CASES, host_check, host_findings

    cases = bench.cases(HOST_CASES)
    found = host_findings(
        item.task.manifest,
        bench.pipeline.tasks[item.task.task],
        bench.checkpoint,
        bench.graphs,
        item.task.onnx.components,
        cases,
        bench.new_tokens(),
        bench.pipeline.verify.seed,
    )
    return host_check(item.subject, found, len(cases))


def _answers(item: Planned, bench: TaskBench) -> Check:
    subject, artifacts = item.subject, item.artifacts
    if item.tokens is None:
        raise ValueError(f"{subject.name}: checks of answers have a number of scenes")
    count = item.tokens.scenes
    computed = arithmetic(artifacts, subject.variant)
    named = item.quality
    gate = item.agreement or usual_agreement(artifacts, subject.variant)
    expected = bench.expected(count)
    cases = bench.cases(count)
    task = bench.runtime_task(artifacts, subject.variant)
    parts = [cases[i : i + CASES_AT_ONCE] for i in range(0, count, CASES_AT_ONCE)]
    if subject.kind == "scores":
        scores = [match for part in parts for match in match_scores(task, part)]
        tolerance = load_tolerances().score(
            target=artifacts.name, precision=artifacts.precision, arithmetic=computed
        )
        check = score_check(subject, cases, expected, scores, gate, tolerance, computed)
        wanted = [answer.probability or 0.0 for answer in expected]
        probabilities = [match.probability for match in scores]
        return with_quality(check, match_quality(cases, wanted, probabilities, named))
    limit = bench.new_tokens()
    tokens = [ids for part in parts for ids in generated_tokens(task, part, limit)]
    check = token_check(subject, cases, expected, tokens, gate, task.tokenizer)
    prompts = [answer.prompt for answer in expected]
    wanted_texts = _texts(task.tokenizer, [answer.tokens for answer in expected], prompts)
    found_texts = _texts(task.tokenizer, tokens, prompts)
    return with_quality(check, text_quality(cases, wanted_texts, found_texts, named))


def _texts(
    tokenizer: TextTokenizer, tokens: Sequence[Sequence[int]], prompts: Sequence[int]
) -> list[str]:
    return [tokenizer.decode(ids[prompt:]) for ids, prompt in zip(tokens, prompts, strict=True)]


def _verdict(
    checks: Sequence[Check], plan: Plan, selection: Selection, built: Mapping[str, BuiltSet]
) -> Json:
    """What this run found."""
    records = [{**check.record(), "run": 0} for check in checks]
    sets = {
        name: built[name]
        for name in sorted({n for r in records for n in sets_of(r)} & built.keys())
    }
    return {
        "passed": passed(checks),
        "checks": records,
        "pipeline": selection.pipeline.name,
        "not_simulated": list(plan.not_simulated),
        "artifacts": {
            path: files for one in sets.values() for path, files in one.artifacts.items()
        },
        "sets": {
            name: {"components": one.components, "sha256": one.sha256} for name, one in sets.items()
        },
    }


def _particulars(selection: Selection, *, full: bool) -> Json:
    return {
        "tasks": list(selection.tasks),
        "components": list(selection.components),
        "targets": [f"{target.name} {precision}" for target, precision in selection.targets],
        "full": full,
    }


def announce(result: Verification) -> None:
    """One line about the whole run, for a verification that passed."""
    count = len(result.checks)
    if result.done_now == 0:
        said = f"verify: unchanged, {count} checks passed before on these artifacts"
    else:
        reused = count - result.done_now
        before = f" ({reused} unchanged)" if reused else ""
        said = f"verify: {count} checks passed{before}, {shown(result.verdict)}"
    messages.print(said + (f"; [yellow]{result.extent}[/]" if result.extent else ""))
    failed = [check for check in result.joined["checks"] if not check["passed"]]
    if failed:
        names = ", ".join(dict.fromkeys(map(own_set, failed)))
        messages.print(f"[yellow]failed before[/], and not verified again now: {escape(names)}")
