"""Looks at every part from the image to the answer, and says which one is wrong and where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from configs.errors import BlipEdgeError
from configs.schema import Component, Precision
from configs.tolerances import LayerTolerance, LimitName, load_tolerances
from pipeline.command import Selection
from runtime.files.manifests import ComponentManifest
from verify.answers.whole_answers import generated_tokens, match_scores
from verify.artifacts import ONNX, TargetArtifacts, TaskArtifacts, arithmetic
from verify.bisect.chip import chip_layers
from verify.bisect.islands import Island, islands
from verify.host.batches import BATCHES
from verify.host.check import HOST_CASES, host_findings
from verify.host.finding import Finding
from verify.host.search import SEARCH
from verify.host.search_rules import search_rule_findings
from verify.layers.checks import (
    Layers,
    checkpoint_layers,
    exceeding,
    exported_graph,
    layer_tolerance,
    target_layers,
    traced_tensors,
)
from verify.layers.chip_constants import chip_constants, constants_tolerance
from verify.layers.chosen_calls import chosen
from verify.layers.introduced import LayerError, difference
from verify.layers.ir_constants import NOWHERE
from verify.layers.openvino_trace import OpenVinoTrace
from verify.layers.stored_constants import FORMATS
from verify.opened import TaskBench
from verify.parity.combined import combined_file, wrong_parts
from verify.parity.lineage import broken_lineage
from verify.results import Subject

Comparison = Literal["checkpoint_vs_onnx", "onnxruntime_vs_target"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ComponentDiagnosis:
    """One component's layers in one comparison."""

    component: Component
    comparison: Comparison
    layers: Layers
    tolerance: LayerTolerance
    #: how the layers were looked at, e.g. ``intermediate outputs`` or the vendor's tool
    method: str
    islands: tuple[Island, ...] = ()
    net: str = "main"

    @property
    def bound(self) -> float:
        """What most layers may introduce."""
        return self.tolerance.max_introduced_error

    @property
    def exceeding(self) -> list[LayerError]:
        """Tensors beyond their bound, worst first."""
        return exceeding(self.layers, self.tolerance)


@dataclass
class Diagnosis:
    """Everything found about one task on one target."""

    artifacts: TargetArtifacts
    task: TaskArtifacts
    mode: str
    findings: list[Finding] = field(default_factory=list)
    components: list[ComponentDiagnosis] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Finding | None:
        """The first part that is wrong: what comes later may only follow from it."""
        return self.findings[0] if self.findings else None


def diagnose(
    selection: Selection,
    task: TaskArtifacts,
    artifacts: TargetArtifacts,
    mode: str,
    on_step: Progress = lambda _: None,
) -> Diagnosis:
    """Works through all parts of one task on one target, in the order data flows.

    Raises:
        InputError, ToolError: an artifact or a tool cannot be used at all.
    """
    result = Diagnosis(artifacts, task, mode)
    bench = TaskBench(task, selection.pipeline)
    try:
        on_step("everything around the graphs")
        searches: list[Finding] = []
        if not selection.components:
            for finding in _host(bench, task):
                # Searches run the graphs: a wrong graph goes before what follows from it.
                late = finding.where in (SEARCH, BATCHES)
                (searches if late else result.findings).append(finding)
            if task.task != "itm":
                result.findings += search_rule_findings()
        for component in selection.task_components(task.task):
            on_step(f"{component}: checkpoint against ONNX")
            result.findings += _export(result, bench, component)
        if artifacts.name != ONNX:
            for component in selection.task_components(task.task):
                on_step(f"{component}: ONNX against {artifacts.name}")
                result.findings += _target(result, bench, selection, component)
        if artifacts.simulated and not selection.components:
            combined = combined_file(artifacts, task.task)
            for component, what in wrong_parts(combined, artifacts.components) if combined else ():
                result.findings.append(Finding("target", f"{component} combined file", what))
        if not result.findings:
            result.findings += searches
        if not result.findings and not selection.components and not artifacts.simulated:
            on_step("whole answers")
            result.findings += _whole_answers(result, bench)
    finally:
        bench.close()
    return result


def _host(bench: TaskBench, task: TaskArtifacts) -> list[Finding]:
    return host_findings(
        task.manifest,
        bench.pipeline.tasks[task.task],
        bench.checkpoint,
        bench.graphs,
        task.onnx.components,
        bench.cases(HOST_CASES),
        bench.new_tokens(),
        bench.pipeline.verify.seed,
    )


def _found(part_of: str, part: ComponentDiagnosis) -> Iterator[Finding]:
    """Constants and attributes first: they name the cause where an error only shows it."""
    named = [fault for fault in part.layers.faults if fault[0] != NOWHERE]
    for where, what in named:
        yield Finding(part_of, f"{part.component} {where.rsplit('.weight', 1)[0]}", what)
    seen = {where for where, _ in part.layers.faults}
    for error in _one_per_layer(part.exceeding):
        if error.layer not in seen:
            what = f"introduces an error of {error.introduced:.1e} at {error.tensor}"
            yield Finding(part_of, f"{part.component} {error.layer}", what)
    for where, what in part.layers.faults:
        if where == NOWHERE:
            yield Finding(part_of, f"{part.component} {where}", what)


def _one_per_layer(errors: list[LayerError]) -> list[LayerError]:
    worst: dict[str, LayerError] = {}
    for error in errors:
        worst.setdefault(error.layer, error)
    return list(worst.values())


def _export(result: Diagnosis, bench: TaskBench, component: Component) -> list[Finding]:
    manifest = result.task.onnx.components[component]
    try:
        layers = checkpoint_layers(
            manifest, bench.checkpoint, bench.task, bench.pipeline.verify.seed
        )
    except BlipEdgeError as error:
        return [Finding("export", component, str(error))]
    subject = Subject("checkpoint_layers", bench.task, component, ONNX, "f32", "layers")
    bound = layer_tolerance(subject, "f32")
    part = ComponentDiagnosis(
        component, "checkpoint_vs_onnx", layers, bound, "hooks on HuggingFace's modules"
    )
    result.components.append(part)
    return list(_found("export", part))


def _target(
    result: Diagnosis, bench: TaskBench, selection: Selection, component: Component
) -> list[Finding]:
    artifacts = result.artifacts
    manifest = artifacts.components[component]
    # Before the layers: a constant names the cause where an error only shows it.
    found = list(_stored(result, component, manifest)) if artifacts.simulated else []
    try:
        if artifacts.simulated:
            parts = _chip(result, bench, selection, component)
        else:
            parts = [_openvino(result, bench, component, manifest)]
    except BlipEdgeError as error:
        return [*found, Finding("target", component, str(error))]
    result.components += parts
    found += [finding for part in parts for finding in _found("target", part)]
    if not found and not artifacts.simulated:
        found += _hidden_by_tracing(result, bench, component, manifest)
    # Last: where the other graph can be seen, the layer says more.
    broken = None if found else broken_lineage(manifest, result.task.onnx.components)
    return found if broken is None else [Finding("target", f"{component} source", broken)]


def _stored(
    result: Diagnosis, component: Component, manifest: ComponentManifest
) -> Iterator[Finding]:
    precision = result.artifacts.stored(component)
    if precision not in FORMATS:
        return
    subject = Subject(
        "target_constants", result.task.task, component, result.artifacts.name, precision, "layers"
    )
    graph = exported_graph(result.task.onnx.components[component])
    bound = constants_tolerance(subject, precision).max_introduced_error
    for where, what in chip_constants(graph, manifest, precision).faults(bound):
        yield Finding("target", f"{component} {where.rsplit('.weight', 1)[0]}", what)


def _openvino(
    result: Diagnosis, bench: TaskBench, component: Component, manifest: ComponentManifest
) -> ComponentDiagnosis:
    artifacts = result.artifacts
    samples = bench.samples(artifacts, component)
    # Rounded weights are part of what is compared at the device's default, not of what is allowed.
    precision: Precision = artifacts.stored(component) if result.mode == "exact" else "f32"
    onnx = result.task.onnx.components[component]
    parts = {manifest.component, *manifest.includes}
    merged = [other for part, other in result.task.onnx.components.items() if part in parts]
    layers = target_layers(onnx, manifest, samples, result.mode, precision, merged)
    bound = _bound(artifacts, component, result.mode)
    found = islands(layers.errors, bound.max_introduced_error)
    how = "outputs added to the IR"
    return ComponentDiagnosis(component, "onnxruntime_vs_target", layers, bound, how, found)


def _limit(name: LimitName) -> float:
    return load_tolerances().limit(name)


def _bound(artifacts: TargetArtifacts, component: Component, mode: str) -> LayerTolerance:
    computed = arithmetic(artifacts, mode, component)
    manifest = artifacts.components[component]
    subject = Subject(
        "target_layers",
        manifest.task,  # type: ignore[arg-type]
        component,
        artifacts.name,
        artifacts.stored(component),
        "layers",
        mode,
    )
    return layer_tolerance(subject, computed)


def _chip(
    result: Diagnosis, bench: TaskBench, selection: Selection, component: Component
) -> list[ComponentDiagnosis]:
    artifacts = result.artifacts
    samples = bench.samples(artifacts, component)
    bound = _bound(artifacts, component, "")
    parts = []
    session = bench.session(artifacts, component)
    for traced in chip_layers(selection, result.task, artifacts, component, samples, session):
        found = islands(traced.layers.errors, bound.max_introduced_error)
        parts.append(
            ComponentDiagnosis(
                component,
                "onnxruntime_vs_target",
                traced.layers,
                bound,
                traced.method,
                found,
                traced.net,
            )
        )
    return parts


def _hidden_by_tracing(
    result: Diagnosis, bench: TaskBench, component: Component, manifest: ComponentManifest
) -> list[Finding]:
    """Faults of fused kernels, which an added output takes apart.

    The untouched IR is far off although every layer is right as soon as its tensors are looked at.
    """
    graph = exported_graph(result.task.onnx.components[component])
    names = traced_tensors(graph)
    traced = OpenVinoTrace(manifest, result.mode, graph, names)
    untouched = bench.session(result.artifacts, component, result.mode)
    least = _limit("bisect_vanished_error")
    bound = max(_bound(result.artifacts, component, result.mode).max_introduced_error, least)
    ratio = _limit("bisect_vanished_ratio")
    try:
        for sample in chosen(bench.samples(result.artifacts, component)):
            expected = bench.graphs.sessions[component].run(sample.feeds)
            plain, looked_at = untouched.run(sample.feeds), traced.tensors(sample.feeds)
            for name, right in expected.items():
                off = difference(right, plain[name])[0]
                if off > max(bound, ratio * difference(right, looked_at[name])[0]):
                    where = f"{component} fused kernel before {name}"
                    what = f"{off:.1e} off as it runs, right as soon as its tensors are looked at"
                    return [Finding("target", where, what)]
    finally:
        traced.close()
    return []


def _whole_answers(result: Diagnosis, bench: TaskBench) -> list[Finding]:
    """Nothing is wrong with any part: then the parts are put together wrongly."""
    cases = bench.cases(HOST_CASES)
    expected = bench.expected(HOST_CASES)
    variant = result.mode if result.artifacts.name != ONNX else ""
    task = bench.runtime_task(result.artifacts, variant)
    found: list[Finding] = []
    if not task.generates:
        for case, answer, match in zip(cases, expected, match_scores(task, cases), strict=True):
            for name, mine, right in (
                ("match probability", match.probability, answer.probability),
                ("contrastive cosine", match.cosine, answer.similarity),
            ):
                if right is None or not abs(mine - right) <= _limit("bisect_scores"):
                    what = f"{case.name}: {mine:.3f} instead of {right:.3f}"
                    found.append(Finding("generation", name, what))
        return found
    tokens = generated_tokens(task, cases, bench.new_tokens())
    end = bench.checkpoint.end_token
    for case, answer, ids in zip(cases, expected, tokens, strict=True):
        if ids != answer.tokens:
            longer = ids[: len(answer.tokens)] == answer.tokens
            where = "end token" if longer or end not in ids else "search"
            what = f"{case.name}: {list(ids)} instead of {list(answer.tokens)}"
            found.append(Finding("generation", where, what))
    return found[:1]
