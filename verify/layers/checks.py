"""Checks layer by layer: the checkpoint against the exported graph, the graph against an IR."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
from onnx import ModelProto, numpy_helper

from configs.precisions import PRECISIONS, Arithmetic, Precision
from configs.schema import Component, Task
from configs.tolerances import Gap, LayerTolerance, load_tolerances, record
from runtime.files.manifests import ComponentManifest
from runtime.sessions.openvino_session import shared_core
from verify.artifacts import runtime_failures
from verify.checkpoint.checkpoint import Checkpoint
from verify.checkpoint.trace import Tracer
from verify.layers.chosen_calls import chosen, longest
from verify.layers.correspondence import Pair, on_graph, pairs, tensor_of, weights
from verify.layers.graph import Array, Arrays, ExportedGraph
from verify.layers.half_precision_ir import half_precision_graph
from verify.layers.integer_ir import IntegerIr, read_integer_ir
from verify.layers.introduced import LayerError, LayerErrors, ranked
from verify.layers.ir_constants import constant_faults
from verify.layers.openvino_trace import OpenVinoTrace
from verify.layers.table_rows import export_row_faults, ir_row_faults
from verify.parity.compare import number
from verify.parity.inputs import Sample
from verify.results import Check, Subject

#: Layers that the verdict lists.
WORST_LAYERS = 5
MOST_PROBLEMS = 6
#: Whose bounds hold for rounded activations, and for all else in an integer IR.
_ROUNDED: Precision = "int8"
_EXACT: Precision = "f32"
#: Graphs with more weights than this are compared at the ends of their layers only: attention
#: scores of full-size models fill gigabytes.
LARGE_GRAPH_BYTES = 64 << 20


@dataclass(frozen=True)
class Layers:
    """What a comparison layer by layer found."""

    errors: tuple[LayerError, ...]
    #: what is wrong apart from an error's size: constants, attributes, missing nodes
    faults: tuple[tuple[str, str], ...]
    cases: tuple[str, ...]


def checkpoint_layers(
    manifest: ComponentManifest, checkpoint: Checkpoint, task: Task, seed: int
) -> Layers:
    """The exported graph fed with HuggingFace's own tensors, layer by layer.

    Every stretch of the graph between two of HuggingFace's modules is run on what HuggingFace had
    there. Constants are compared bit by bit with the checkpoint's parameters.
    """
    component: Component = manifest.component  # type: ignore[assignment]
    graph = exported_graph(manifest)
    points = pairs(component, task, checkpoint.layers(component))
    errors = LayerErrors(graph)
    names: list[str] = []
    missing: dict[str, str] = {}
    for traced in Tracer(checkpoint).traces(component, points, seed):
        tensors, without = on_graph(traced, points, graph)
        missing |= without
        errors.add(traced.feeds, tensors)
        names.append(traced.name)
    faults = [
        *missing.items(),
        *errors.not_finite,
        *exported_constants(graph, component, task, checkpoint),
        *_exported_rows(graph, manifest, task, checkpoint),
        *_epsilons(graph, points, checkpoint),
    ]
    return Layers(tuple(errors.result()), tuple(faults), tuple(names))


def exported_graph(manifest: ComponentManifest) -> ExportedGraph:
    """A component's exported graph."""
    return ExportedGraph(manifest.folder / manifest.nets[0].file)


def target_layers(
    onnx_manifest: ComponentManifest,
    target: ComponentManifest,
    samples: Sequence[Sample],
    mode: str,
    precision: Precision,
    merged: Iterable[ComponentManifest] = (),
) -> Layers:
    """Every layer of an IR on its own inputs, against the exported graph on the same inputs.

    In float32 (``exact``) with weights stored in half precision, the exported graph's constants are
    rounded as the converter rounds them: what is left is the order of additions. An IR of integers
    is compared twice: with the exported graph, which shows what the integers cost, and with the
    graph that has the IR's own integers in it, which must agree as closely as a float IR.
    Constants are compared bit by bit, and embeddings row by row: calls read few of their rows.
    ``merged`` are the exported graphs of what the IR computes besides.
    """
    graph = exported_graph(onnx_manifest)
    stored = PRECISIONS[precision]
    integers = read_integer_ir(target, graph) if stored.integer_weights else None
    quantisers = integers.quantisers if integers else {}
    trace = OpenVinoTrace(target, mode, graph, traced_tensors(graph), quantisers)
    rounded = half_precision_graph(target, graph) if stored.weights == "f16" else None
    errors = LayerErrors(graph, rounded)
    own = LayerErrors(integers.graph) if integers and mode == "exact" else None
    names = []
    try:
        for sample in (*chosen(samples), *longest(samples, graph, target)):
            tensors = trace.tensors(sample.feeds)
            feeds = _own_inputs(graph, sample.feeds, tensors)
            errors.add(feeds, tensors)
            if own is not None:
                own.add(feeds, tensors)
            names.append(sample.name)
    finally:
        trace.close()
    faults = [*errors.not_finite]
    faults += [
        (graph.sites[name].layer, f"epsilon {trace.epsilons[name]:.1e} instead of {expected:.1e}")
        for name, expected in graph.epsilons.items()
        if name in trace.epsilons and not _same_epsilon(trace.epsilons[name], expected)
    ]
    if mode == "exact":
        others = [exported_graph(other) for other in merged if other.path != onnx_manifest.path]
        faults += _stored_faults(target, graph, others, integers, rounded)
    if integers is not None:
        faults += integers.faults
        faults += _integer_faults(own.result() if own else [], set(quantisers.values()), target)
    return Layers(tuple(errors.result()), tuple(faults), tuple(names))


def _stored_faults(
    target: ComponentManifest,
    graph: ExportedGraph,
    others: Iterable[ExportedGraph],
    integers: IntegerIr | None,
    rounded: ModelProto | None,
) -> Iterator[tuple[str, str]]:
    """Float constants that are not the exported ones, and rows that are looked up wrongly."""
    with runtime_failures():
        ir = shared_core().read_model(str(target.folder / target.nets[0].file))
    # First: it names the table of a constant that has no name.
    own = integers.graph.model if integers else rounded
    yield from ir_row_faults(ir, graph, own, _row(target, _EXACT).max_introduced_error)
    yield from constant_faults(ir, target, graph, others, integers.steps if integers else None)


def _row(
    target: ComponentManifest, precision: Precision, gap: Gap = "target_layers"
) -> LayerTolerance:
    return load_tolerances().layer(
        gap=gap,
        target=target.target,
        precision=precision,
        arithmetic="f32",
        component=target.component,  # type: ignore[arg-type]
    )


def _integer_faults(
    errors: Sequence[LayerError], quantisers: Collection[str], target: ComponentManifest
) -> Iterator[tuple[str, str]]:
    """Ranges that lose more than rounding does, and layers that are wrong with these integers."""
    rows = {precision: _row(target, precision) for precision in (_ROUNDED, _EXACT)}
    for error in errors:
        row = rows[_ROUNDED if error.tensor in quantisers else _EXACT]
        bound = row.bound(error.operators)
        if error.introduced <= bound:
            continue
        if error.tensor in quantisers:
            what = f"the range of its integers loses {error.introduced:.1e} of {error.tensor}"
        else:
            what = (
                f"introduces an error of {error.introduced:.1e} at {error.tensor}, beyond what "
                "its integers explain"
            )
        yield error.layer, f"{what}, {bound:.0e} is allowed"


def _own_inputs(graph: ExportedGraph, feeds: Arrays, tensors: Arrays) -> Arrays:
    """What a component really read where one model computes several: its own image states."""
    if "encoder_hidden_states" in graph.inputs and "image_embeds" in tensors:
        return {**feeds, "encoder_hidden_states": tensors["image_embeds"]}
    return feeds


def traced_tensors(graph: ExportedGraph) -> tuple[str, ...]:
    """All tensors of a small graph, the last of each layer of a large one."""
    size = sum(tensor.ByteSize() for tensor in graph.model.graph.initializer)
    if size <= LARGE_GRAPH_BYTES:
        return graph.float_tensors
    last = {site.layer: site.tensor for site in graph.sites.values()}
    return tuple(name for name in graph.float_tensors if name in set(last.values()))


def exported_constants(
    graph: ExportedGraph, component: Component, task: Task, checkpoint: Checkpoint
) -> Iterator[tuple[str, str]]:
    """(constant, what is wrong) of those that do not hold the checkpoint's own weights."""
    # Equal constants are stored once, under one name: such a name is found by the bits.
    held = {_bits(numpy_helper.to_array(tensor)) for tensor in graph.initializers.values()}
    for weight in weights(component, task, checkpoint.layers(component)):
        expected = checkpoint.parameters.get(weight.parameter)
        if expected is None:
            if weight.constant in graph.initializers:
                yield weight.constant, f"the checkpoint has no {weight.parameter}"
            continue
        name = weight.constant
        if name not in graph.initializers and weight.tied_to:
            name = weight.tied_to
        if weight.part is not None:
            expected = np.split(expected, 3, axis=0)[weight.part]
        if weight.transposed:
            expected = expected.T
        tensor = graph.initializers.get(name)
        if tensor is None:
            if not {_bits(expected), _bits(expected.T)} & held:
                yield name, f"no constant of the graph holds the checkpoint's {weight.parameter}"
            continue
        found = numpy_helper.to_array(tensor)
        if found.shape != expected.shape:
            yield name, f"shape {list(found.shape)} instead of {list(expected.shape)}"
        elif not np.array_equal(found, expected):
            scale = float(np.abs(expected).max()) or 1.0
            share = float(np.mean(found != expected))
            worst = float(np.abs(found.astype(np.float64) - expected).max()) / scale
            yield (
                name,
                f"{share:.1%} of its values differ from the checkpoint's {weight.parameter}, "
                f"by up to {worst:.1e} of its scale",
            )


def _bits(array: Array) -> bytes:
    return sha256(array.tobytes()).digest()


def _exported_rows(
    graph: ExportedGraph, manifest: ComponentManifest, task: Task, checkpoint: Checkpoint
) -> list[tuple[str, str]]:
    """Rows of the embedding tables that the graph looks up wrongly."""
    tables = {weight.constant: weight.parameter for weight in weights(manifest.component, task, 0)}  # type: ignore[arg-type]
    if "embeddings.tokens" not in tables:
        return []
    tokens, positions = (
        checkpoint.parameters[tables[f"embeddings.{name}"]] for name in ("tokens", "positions")
    )
    return export_row_faults(
        graph, tokens, positions, _row(manifest, _EXACT, "checkpoint_layers").max_introduced_error
    )


def _epsilons(
    graph: ExportedGraph, points: Sequence[Pair], checkpoint: Checkpoint
) -> Iterator[tuple[str, str]]:
    epsilons = graph.epsilons
    for pair in points:
        expected = getattr(checkpoint.modules.get(pair.module), "eps", None)
        found = epsilons.get(tensor_of(graph, pair) or "")
        if expected is None or found is None or pair.side != "output":
            continue
        if not _same_epsilon(found, expected):
            yield pair.scope, f"epsilon {found:.1e} instead of {expected:.1e}"


def _same_epsilon(found: float, expected: float) -> bool:
    return bool(np.isclose(found, expected, rtol=1e-3, atol=0.0))


def layer_tolerance(subject: Subject, arithmetic: Arithmetic) -> LayerTolerance:
    """The row that bounds the error of one layer."""
    return load_tolerances().layer(
        gap=subject.gap,
        target=subject.target,
        precision=subject.precision,
        arithmetic=arithmetic,
        component=subject.named_component,
    )


def exceeding(layers: Layers, tolerance: LayerTolerance) -> list[LayerError]:
    """Tensors whose introduced error is beyond the bound, worst first."""
    return [
        error
        for error in ranked(layers.errors)
        # Written so that NaN fails.
        if not error.introduced <= tolerance.bound(error.operators)
    ]


def layer_check(
    subject: Subject, layers: Layers, arithmetic: Arithmetic, stored: Precision | None = None
) -> Check:
    """The verdict over a component's layers; ``stored`` is what it is within its set."""
    judged = replace(subject, precision=stored) if stored else subject
    tolerance = layer_tolerance(judged, arithmetic)
    problems = [f"{where}: {what}" for where, what in layers.faults]
    problems += [
        f"{error.layer}: introduces an error of {error.introduced:.1e} at {error.tensor}, "
        f"{tolerance.bound(error.operators):.0e} is allowed"
        for error in exceeding(layers, tolerance)
    ]
    if not layers.errors:
        problems.append("nothing was compared")
    if len(problems) > MOST_PROBLEMS:
        problems = [*problems[:MOST_PROBLEMS], f"and {len(problems) - MOST_PROBLEMS} more"]
    worst = ranked(layers.errors)[:WORST_LAYERS]
    metrics: dict[str, Any] = {
        "introduced_error": number(worst[0].introduced) if worst else None,
        "tensors": len(layers.errors),
        "arithmetic": arithmetic,
        "worst_layers": [
            {
                "layer": error.layer,
                "tensor": error.tensor,
                "introduced": number(error.introduced),
                "accumulated": number(error.accumulated),
            }
            for error in worst
        ],
        "cases": list(layers.cases),
    }
    return Check(subject, len(layers.cases), metrics, record(tolerance), tuple(problems))
