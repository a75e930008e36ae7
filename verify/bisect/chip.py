"""Every layer of a chip's net: TPU-MLIR's dumps of the quantised graph that was compiled.

The build's own commands are repeated in a temporary folder, which brings back the quantised graph
that a build does not keep. ``model_runner.py --dump_all_tensors`` then runs it operator by operator
in the chip's number formats. The BModel itself answers on the chip simulator: where it differs from
its own quantised graph, the fault lies behind the compiler's graph, or the BModel is another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from configs.errors import ToolError
from configs.layout import Layout
from configs.load import shown
from configs.schema import Component
from configs.tolerances import load_tolerances
from pipeline.command import Selection
from pipeline.manifest import ComponentManifest as BuildManifest
from pipeline.manifest import QuantizedNet, read_manifest
from pipeline.tpu_tools.command_lines import (
    DEPLOY,
    RUNNER,
    TRANSFORM,
    calibration_files,
    dump_tensors,
    graph_of,
    with_debug,
    with_graph,
)
from pipeline.tpu_tools.process import VendorTools
from runtime.files.manifests import ComponentManifest
from runtime.files.nets import Net
from runtime.sessions.session import Session
from verify.artifacts import TargetArtifacts, TaskArtifacts, runtime_failures
from verify.bisect.coefficients import misplaced_weights
from verify.layers.checks import Layers
from verify.layers.graph import Array, Arrays, ExportedGraph
from verify.layers.introduced import LayerErrors, difference
from verify.parity.inputs import Sample

#: Calls per net: a first and a last one.
MOST_CALLS = 2
#: The vendor calls a tensor ``<exported name>_<operator>``.
_VENDOR_NAME = re.compile(r"^(?P<tensor>.+)_(?P<operator>[A-Za-z0-9]+)$")


@dataclass(frozen=True)
class ChipLayers:
    """The layers of one net of a component."""

    net: str
    layers: Layers
    method: str


def chip_layers(
    selection: Selection,
    task: TaskArtifacts,
    artifacts: TargetArtifacts,
    component: Component,
    samples: Sequence[Sample],
    session: Session,
) -> Iterator[ChipLayers]:
    """Each net of a component; ``session`` is the BModel on the simulator.

    Raises:
        ToolError: the vendor's tools failed, or what the build left is gone.
    """
    manifest = artifacts.components[component]
    built = read_manifest(BuildManifest, manifest.path)
    work = Layout(selection.pipeline).work
    commands = {
        name: [argv for argv in built.commands if argv[0] == name] for name in (TRANSFORM, DEPLOY)
    }
    for number, net in enumerate(manifest.nets):
        mine = [sample for sample in samples if sample.net == net.name]
        calls = mine[:1] + mine[1:][-(MOST_CALLS - 1) :]
        if not calls or number >= len(commands[DEPLOY]):
            continue
        with TemporaryDirectory(prefix="bisect-") as folder:
            yield _net(
                Path(folder),
                work,
                manifest,
                net,
                commands[TRANSFORM][number],
                commands[DEPLOY][number],
                built.quantization.nets.get(net.name) if built.quantization else None,
                calls,
                session,
                rebuild=f"make bmodel TARGET={artifacts.name} TASK={task.task} FORCE=1",
            )


def _net(
    folder: Path,
    work: Path,
    manifest: ComponentManifest,
    net: Net,
    transform: tuple[str, ...],
    deploy: tuple[str, ...],
    quantized: QuantizedNet | None,
    calls: Sequence[Sample],
    session: Session,
    *,
    rebuild: str,
) -> ChipLayers:
    graph = ExportedGraph(_prepared(work, transform, rebuild))
    _run(with_graph(transform, str(graph.path)), folder, work)
    _lay_out_calibration(manifest.folder, quantized, deploy, folder, rebuild)
    compiled = _compiled(folder, deploy, work)
    _run(with_debug(deploy), folder, work)
    quantised = sorted(folder.glob("*_tpu.mlir"))
    if not quantised:
        raise ToolError(f"{DEPLOY}: left no quantised graph for {net.name}")
    errors = LayerErrors(graph)
    faults = [
        *_crossed(net, graph),
        *misplaced_weights(compiled, folder, manifest.folder / net.file, graph),
    ]
    names: dict[str, str] = {}
    for sample in calls:
        dumped = _dump(folder, work, quantised[0], manifest, net, sample.feeds)
        tensors, vendor = on_graph(dumped, graph)
        names |= vendor
        errors.vendor_names = names
        feeds = {**sample.feeds, **_inputs(manifest, net, sample.feeds)}
        errors.add(feeds, tensors)
        with runtime_failures():
            answered = session.run(sample.feeds, net=net.name)
        table = load_tolerances()
        integers = table.limit("bisect_own_graph_of_integers")
        bound = integers if quantized else table.limit("bisect_own_graph")
        faults += _against_own_graph(net, dumped, answered, sample, bound)
    listed = tuple(dict.fromkeys(faults))
    layers = Layers(tuple(errors.result()), listed, tuple(sample.name for sample in calls))
    return ChipLayers(net.name, layers, f"{RUNNER} --dump_all_tensors {quantised[0].name}")


def _run(argv: Sequence[str], folder: Path, work: Path) -> None:
    VendorTools().run(argv, folder, folder / f"{argv[0]}.log", work=work)


def _compiled(folder: Path, deploy: Sequence[str], work: Path) -> Path:
    """The BModel of the build's own command, kept apart: ``--debug`` lays weights out otherwise."""
    _run(deploy, folder, work)
    found = sorted(folder.glob("*.bmodel"))
    if not found:
        raise ToolError(f"{DEPLOY}: left no BModel")
    return found[0].replace(folder / "compiled")


def _crossed(net: Net, graph: ExportedGraph) -> Iterator[tuple[str, str]]:
    """Outputs and inputs that the manifest takes from another tensor of the exported graph."""
    for spec in (*net.outputs, *net.inputs):
        match = _VENDOR_NAME.match(spec.artifact_name)
        for name in (spec.artifact_name, match["tensor"] if match else ""):
            if name != spec.name and name in (*graph.outputs, *graph.inputs):
                site = graph.sites.get(spec.name)
                layer = site.layer if site else spec.name
                yield layer, f"{spec.name} is taken from {name} of net {net.name}"


def _lay_out_calibration(
    artifact: Path,
    quantized: QuantizedNet | None,
    deploy: Sequence[str],
    folder: Path,
    rebuild: str,
) -> None:
    """Puts the calibration files that a deploy command names where it looks for them."""
    if quantized is None:
        return
    thresholds, table = calibration_files(deploy)
    for file, name in ((thresholds, quantized.thresholds), (table, quantized.table)):
        if file is None:
            continue
        stored = artifact / name
        if not stored.is_file():
            raise ToolError(f"{shown(stored)}: no longer there; run: {rebuild}")
        # The compiler's table knows no comments.
        lines = stored.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = lines if file != table else [one for one in lines if not one.startswith("#")]
        (folder / file).write_text("".join(kept), encoding="utf-8")


def _prepared(work: Path, transform: Sequence[str], rebuild: str) -> Path:
    """The graph with fixed shapes that the vendor's compiler was given."""
    given = Path(graph_of(transform))
    path = work / given.parent.name / given.name
    if not path.is_file():
        raise ToolError(f"{shown(path)}: no longer there; run: {rebuild}")
    return path


def _inputs(manifest: ComponentManifest, net: Net, feeds: Arrays) -> dict[str, Array]:
    """A call's arrays as the compiled graph takes them: ids of 32 bits, embeddings looked up."""
    tables = {lookup.input: lookup for lookup in net.host_lookups}
    found: dict[str, Array] = {}
    for spec in net.inputs:
        if spec.name in tables and spec.name not in feeds:
            lookup = tables[spec.name]
            table = np.load(manifest.folder / lookup.table, allow_pickle=False)
            found[spec.name] = table[np.asarray(feeds[lookup.indices])].astype(np.float32)
        else:
            found[spec.name] = np.ascontiguousarray(feeds[spec.name])
    return found


def _dump(
    folder: Path, work: Path, quantised: Path, manifest: ComponentManifest, net: Net, feeds: Arrays
) -> dict[str, Array]:
    given, result = folder / "inputs.npz", folder / "tensors.npz"
    arrays = {
        name: array.astype(np.int32 if array.dtype.kind == "i" else np.float32)
        for name, array in _inputs(manifest, net, feeds).items()
    }
    np.savez(given, **arrays)  # type: ignore[arg-type]
    result.unlink(missing_ok=True)
    _run(dump_tensors(quantised.name, given.name, result.name), folder, work)
    with np.load(result, allow_pickle=False) as tensors:
        return {name: tensors[name].astype(np.float32) for name in tensors.files}


def on_graph(dumped: Arrays, graph: ExportedGraph) -> tuple[dict[str, Array], dict[str, str]]:
    """Dumped tensors under the exported names, and the vendor's name of each."""
    tensors: dict[str, Array] = {}
    names: dict[str, str] = {}
    for vendor, array in dumped.items():
        match = _VENDOR_NAME.match(vendor)
        name = match["tensor"] if match else vendor
        if name in graph.sites and name not in tensors:
            tensors[name], names[name] = array, vendor
    return tensors, names


def _against_own_graph(
    net: Net, dumped: Arrays, answered: Arrays, sample: Sample, bound: float
) -> Iterator[tuple[str, str]]:
    for spec in net.outputs:
        quantised = dumped.get(spec.artifact_name)
        if quantised is None:
            continue
        found = answered[spec.name]
        quantised = quantised.reshape(found.shape)
        rows = sample.rows_of(spec.name)
        if rows is not None:
            found, quantised = found[:, rows], quantised[:, rows]
        off = difference(quantised, found)[0]
        if not off <= bound:
            what = f"{spec.name} is {off:.1e} off the graph that its own commands compile"
            yield f"BModel ({net.name})", what
