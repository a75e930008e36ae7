"""Exported graph -> graphs a chip's compiler takes: rewritten, shapes fixed, constants folded."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from pydantic import BaseModel, ConfigDict

from compile.backend import Source
from compile.bmodel.rewrites import Lookup, load
from compile.graphs.graph import externalise, input_specs, load_graph, output_specs, weights_bytes
from compile.graphs.parity import Arrays, PlainGraph, random_inputs, real_inputs, with_lookups
from compile.graphs.static_graph import fix_shapes
from pipeline.manifest import FIRST_LOGIT, HostLookup, Rewrite
from pipeline.net_shapes import NetShape, bind
from pipeline.work_cache import CONTENTS

FIX_SHAPES = "fix_shapes"
_REASON = "the chips' compiler takes static shapes only; what computes shapes becomes a constant"
_WEIGHTS = "weights.bin"
_PLAIN = "plain.onnx"
_RECORD = "prepared.json"


class PreparedNet(BaseModel):
    """One graph with fixed shapes."""

    model_config = ConfigDict(frozen=True)

    name: str
    #: graph file in the prepared folder
    file: str
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    #: attentions in the graph: each has one softmax over its scores
    attentions: int


class Prepared(BaseModel):
    """What preparation made, as recorded beside the graphs."""

    model_config = ConfigDict(frozen=True)

    nets: tuple[PreparedNet, ...]
    rewrites: tuple[Rewrite, ...]
    #: ``table`` is a file in the prepared folder
    lookups: tuple[HostLookup, ...]
    weights_bytes: int

    @property
    def needed(self) -> tuple[str, ...]:
        """Rewrites that found something to change; the fixing of shapes is none of them."""
        made = (rewrite for rewrite in self.rewrites if rewrite.name != FIX_SHAPES)
        return tuple(rewrite.name for rewrite in made if rewrite.sites)


def read_prepared(folder: Path) -> Prepared:
    """The record of a prepared folder."""
    return Prepared.model_validate_json((folder / _RECORD).read_text())


def write_prepared(
    source: Source, nets: Sequence[NetShape], rewrites: Sequence[str], folder: Path
) -> None:
    """Fills ``folder`` with one graph per net, their common weights, and a record.

    Raises:
        InputError: the exported file is no ONNX graph.
        ParityError: a rewrite changes what the graph computes.
    """
    plain = folder / _PLAIN
    externalise(source.onnx, plain, _WEIGHTS)
    tensors = source.manifest.nets[0].inputs
    static_cases = {net.name: random_inputs(tensors, net.axes, source.task, 0) for net in nets}
    for case in static_cases.values():
        _ask_for_logits(case, rewrites)
    dynamic, done, lookups = _rewrite(source, nets, rewrites, plain)
    prepared_nets = []
    largest, folded = 0.0, 0
    for net in nets:
        case = static_cases[net.name]
        graph = folder / f"{net.name}.onnx"
        folded += fix_shapes(dynamic, _taken(dynamic, with_lookups(case, lookups)), graph)
        check = PlainGraph(plain, [case]).check(graph, f"{source.onnx}: {FIX_SHAPES}", lookups)
        largest = max(largest, check)
        prepared_nets.append(_described(graph, net.name))
    fixed = Rewrite(name=FIX_SHAPES, reason=_REASON, sites=folded, max_abs_error=largest)
    for path in {plain, dynamic}:
        path.unlink()
    record = Prepared(
        nets=tuple(prepared_nets),
        rewrites=(*done, fixed),
        lookups=tuple(_stored(lookup, folder) for lookup in lookups),
        # Not the file's size: weights that a rewrite replaced are still in it.
        weights_bytes=max(weights_bytes(load_graph(folder / n.file)) for n in prepared_nets),
    )
    (folder / _RECORD).write_text(record.model_dump_json(indent=1))


def copy_prepared(made: Path, folder: Path) -> None:
    """Fills ``folder`` as :func:`write_prepared` would without what changed nothing in ``made``.

    The graphs are the same ones, so they are copied and the record alone is written anew.
    """
    # No hard links: onnx refuses to read weights from a file with several names.
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns(CONTENTS), dirs_exist_ok=True)
    prepared = read_prepared(made)
    kept = tuple(one for one in prepared.rewrites if one.sites or one.name == FIX_SHAPES)
    record = prepared.model_copy(update={"rewrites": kept})
    (folder / _RECORD).write_text(record.model_dump_json(indent=1))


def _rewrite(
    source: Source, nets: Sequence[NetShape], rewrites: Sequence[str], plain: Path
) -> tuple[Path, list[Rewrite], list[Lookup]]:
    """Applies rewrites one after the other, checking each against the plain graph."""
    reference = None
    current = plain
    done: list[Rewrite] = []
    lookups: list[Lookup] = []
    for name in rewrites:
        module = load(name)
        model = load_graph(current)
        result = module.rewrite(model, plain.parent)
        error = 0.0
        if result.sites:
            lookups += result.lookups
            changed = plain.parent / f"rewritten_{len(done)}.onnx"
            onnx.save_model(model, changed)
            reference = reference or PlainGraph(plain, _cases(source, nets, rewrites))
            error = reference.check(changed, f"{source.onnx}: {name}", lookups)
            if current != plain:
                current.unlink()
            current = changed
        done.append(
            Rewrite(name=name, reason=module.REASON, sites=result.sites, max_abs_error=error)
        )
    return current, done, lookups


def _ask_for_logits(case: Arrays, rewrites: Sequence[str]) -> None:
    """Asks the exported graph for what a rewritten one answers without being asked."""
    if "every_logit" in rewrites:
        case[FIRST_LOGIT] = np.array(-case["input_ids"].shape[1])


def _cases(source: Source, nets: Sequence[NetShape], rewrites: Sequence[str]) -> list[Arrays]:
    """Inputs of several lengths: each net's own, two short batches, and real ones."""
    tensors = source.manifest.nets[0].inputs
    short = {"batch": 2, "text_tokens": 3, "encoder_tokens": 5}
    axes = [net.axes for net in nets]
    axes += [{**nets[0].axes, **short, "past_tokens": p, "total_tokens": p + 3} for p in (0, 4)]
    distinct = {tuple(bind(tensors, lengths).values()): lengths for lengths in axes}
    cases = [random_inputs(tensors, a, source.task, i) for i, a in enumerate(distinct.values())]
    cases += real_inputs(source.location.file(".reference.npz"))
    for case in cases:
        _ask_for_logits(case, rewrites)
    return cases


def _taken(graph: Path, inputs: Arrays) -> Arrays:
    """The inputs that a graph has, in its order."""
    return {name: inputs[name] for name in input_specs(load_graph(graph))}


def _described(graph: Path, name: str) -> PreparedNet:
    model = load_graph(graph)

    def shapes(specs: dict[str, tuple[tuple[int | str, ...], str]]) -> dict[str, tuple[int, ...]]:
        return {k: tuple(int(size) for size in shape) for k, (shape, _) in specs.items()}

    return PreparedNet(
        name=name,
        file=graph.name,
        inputs=shapes(input_specs(model)),
        outputs=shapes(output_specs(model)),
        attentions=sum(node.op_type == "Softmax" for node in model.graph.node),
    )


def _stored(lookup: Lookup, folder: Path) -> HostLookup:
    table = f"{lookup.input.replace('.embeddings', '')}.npy"
    np.save(folder / table, lookup.table)
    return HostLookup(indices=lookup.indices, input=lookup.input, table=table)
