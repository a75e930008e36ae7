"""Checks layer by layer: the checkpoint against the exported graph, the graph against an IR."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import numpy_helper

from configs.precisions import PRECISIONS, Arithmetic, Precision
from configs.schema import Component, Task
from configs.tolerances import LayerTolerance, load_tolerances, record
from runtime.files.manifests import ComponentManifest
from verify.checkpoint.checkpoint import Checkpoint
from verify.checkpoint.trace import Tracer
from verify.layers.correspondence import Pair, on_graph, pairs, tensor_of, weights
from verify.layers.graph import Arrays, ExportedGraph
from verify.layers.half_precision_ir import half_precision_graph
from verify.layers.integer_ir import read_integer_ir
from verify.layers.introduced import LayerError, LayerErrors, ranked
from verify.layers.openvino_trace import OpenVinoTrace
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
        *exported_constants(graph, component, task, checkpoint),
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
) -> Layers:
    """Every layer of an IR on its own inputs, against the exported graph on the same inputs.

    In float32 (``exact``) with weights stored in half precision, the exported graph's constants are
    rounded as the converter rounds them: what is left is the order of additions. An IR of integers
    is compared twice: with the exported graph, which shows what the integers cost, and with the
    graph that has the IR's own integers in it, which must agree as closely as a float IR.
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
        for sample in chosen(samples):
            tensors = trace.tensors(sample.feeds)
            feeds = _own_inputs(graph, sample.feeds, tensors)
            errors.add(feeds, tensors)
            if own is not None:
                own.add(feeds, tensors)
            names.append(sample.name)
    finally:
        trace.close()
    faults = [
        (graph.sites[name].layer, f"epsilon {trace.epsilons[name]:.1e} instead of {expected:.1e}")
        for name, expected in graph.epsilons.items()
        if name in trace.epsilons and not _same_epsilon(trace.epsilons[name], expected)
    ]
    if integers is not None:
        faults += integers.faults
        faults += _integer_faults(own.result() if own else [], set(quantisers.values()), target)
    return Layers(tuple(errors.result()), tuple(faults), tuple(names))


def _integer_faults(
    errors: Sequence[LayerError], quantisers: Collection[str], target: ComponentManifest
) -> Iterator[tuple[str, str]]:
    """Ranges that lose more than rounding does, and layers that are wrong with these integers."""
    table = load_tolerances()
    rows = {
        precision: table.layer(
            gap="target_layers",
            target=target.target,
            precision=precision,
            arithmetic="f32",
            component=target.component,  # type: ignore[arg-type]
        ).max_introduced_error
        for precision in (_ROUNDED, _EXACT)
    }
    for error in errors:
        bound = rows[_ROUNDED if error.tensor in quantisers else _EXACT]
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


def chosen(samples: Sequence[Sample]) -> Iterator[Sample]:
    """The first, a middle and the last sample, and the first with parts of its masks closed."""
    if not samples:
        return
    indices = dict.fromkeys((0, len(samples) // 2, len(samples) - 1))
    yield from (samples[index] for index in indices)
    masked = _masked(samples[len(samples) // 2])
    if masked is not None:
        yield masked
        yield _two_rows(masked, samples[len(samples) // 2])


def _two_rows(sample: Sample, other: Sample) -> Sample:
    """Two different rows in one call: with one, a row that takes another's inputs goes unseen."""
    feeds = {}
    for name, array in sample.feeds.items():
        second = other.feeds[name]
        if "mask" not in name and second.ndim > 1:
            second = np.roll(second, 1, axis=1)
        feeds[name] = np.concatenate([array, second])
    return replace(sample, name=f"{sample.name}, two rows", feeds=feeds)


def _masked(sample: Sample) -> Sample | None:
    """A call in which something is masked: without padding, real ones mask next to nothing."""
    feeds = dict(sample.feeds)
    if "attention_mask" in feeds:
        mask = feeds["attention_mask"].copy()
        mask[:, max(1, 2 * mask.shape[1] // 3) :] = 0
        feeds["attention_mask"] = mask
    elif "self_attention_mask" in feeds:
        mask = feeds["self_attention_mask"].copy()
        mask[..., : mask.shape[-1] // 3] = -10000.0
        feeds["self_attention_mask"] = mask
        if "cross_attention_mask" in feeds:
            cross = feeds["cross_attention_mask"].copy()
            cross[..., 2 * cross.shape[-1] // 3 :] = -10000.0
            feeds["cross_attention_mask"] = cross
    else:
        return None
    return replace(sample, name=f"{sample.name}, partly masked", feeds=feeds)


def exported_constants(
    graph: ExportedGraph, component: Component, task: Task, checkpoint: Checkpoint
) -> Iterator[tuple[str, str]]:
    """(constant, what is wrong) of those that do not hold the checkpoint's own weights."""
    for weight in weights(component, task, checkpoint.layers(component)):
        expected = checkpoint.parameters.get(weight.parameter)
        name = weight.constant
        if name not in graph.initializers and weight.tied_to:
            name = weight.tied_to
        tensor = graph.initializers.get(name)
        if expected is None or tensor is None:
            # Equal constants are stored once, under one name: the layer's own output is compared.
            continue
        if weight.part is not None:
            expected = np.split(expected, 3, axis=0)[weight.part]
        if weight.transposed:
            expected = expected.T
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
    limit = tolerance.max_introduced_error
    # Written so that NaN fails.
    return [error for error in ranked(layers.errors) if not error.introduced <= limit]


def layer_check(
    subject: Subject, layers: Layers, arithmetic: Arithmetic, stored: Precision | None = None
) -> Check:
    """The verdict over a component's layers; ``stored`` is what it is within its set."""
    judged = replace(subject, precision=stored) if stored else subject
    tolerance = layer_tolerance(judged, arithmetic)
    problems = [f"{where}: {what}" for where, what in layers.faults]
    problems += [
        f"{error.layer}: introduces an error of {error.introduced:.1e} at {error.tensor}, "
        f"{tolerance.max_introduced_error:.0e} is allowed"
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
