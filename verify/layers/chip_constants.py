"""Whether a chip's artifact holds the exported weights: its BModel, and its tables for the host."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import numpy_helper

from configs.precisions import PRECISIONS, Precision
from configs.tolerances import LayerTolerance, load_tolerances, record
from runtime.files.manifests import ComponentManifest
from runtime.files.nets import HostLookup
from verify.layers.graph import Array, ExportedGraph
from verify.layers.stored_constants import FORMATS, Format, Stored, bits, find_constants
from verify.parity.compare import number
from verify.results import Check, Subject

MOST_PROBLEMS = 6
_IDS = "input_ids"


@dataclass(frozen=True)
class ChipConstants:
    """What was found of a component's constants, worst first."""

    found: tuple[Stored, ...]
    #: rows of host tables that are not the exported ones: (constant, what)
    tables: tuple[tuple[str, str], ...]

    def faults(self, bound: float) -> list[tuple[str, str]]:
        """(constant, what is wrong with it); ``bound`` is the part that may be missing."""
        listed = {name for name, _ in self.tables}
        missing = [
            (
                stored.name,
                f"{100 * (1 - stored.share):.2g} % of its values are not in {stored.file}",
            )
            for stored in self.found
            if stored.name not in listed and not 1 - stored.share <= bound
        ]
        return [*self.tables, *missing]


def chip_constants(
    graph: ExportedGraph, target: ComponentManifest, precision: Precision
) -> ChipConstants:
    """Looks an exported graph's constants up in the files of a chip's artifact.

    What the host looks up is compared row by row with its table, which has a number format of its
    own; a table is no place to find what the nets compute with.
    """
    tables = {lookup.table: lookup for net in target.nets for lookup in net.host_lookups}
    constants = dict(_used(graph, target, {lookup.indices for lookup in tables.values()}))
    # Every file has nets of its own, and a right one must not vouch for another.
    files = [name for name in target.files if name.endswith(".bmodel")]
    found = [
        replace(stored, file=name)
        for name in files
        for stored in find_constants(constants, [target.folder / name], FORMATS[precision])
    ]
    wrong = [fault for lookup in tables.values() for fault in _table(graph, target, lookup)]
    return ChipConstants(tuple(sorted(found, key=lambda stored: stored.share)), tuple(wrong))


def constants_tolerance(subject: Subject, precision: Precision) -> LayerTolerance:
    """The row that bounds the part of a constant that may be missing."""
    return load_tolerances().layer(
        gap="target_constants",
        target=subject.target,
        precision=precision,
        arithmetic=PRECISIONS[precision].arithmetic,
        component=subject.named_component,
    )


def constants_check(subject: Subject, constants: ChipConstants, precision: Precision) -> Check:
    """The verdict over a component's constants."""
    tolerance = constants_tolerance(subject, precision)
    limit = tolerance.max_introduced_error
    problems = [f"{name}: {what}" for name, what in constants.faults(limit)]
    if not constants.found:
        problems.append("no constant was looked up")
    if len(problems) > MOST_PROBLEMS:
        problems = [*problems[:MOST_PROBLEMS], f"and {len(problems) - MOST_PROBLEMS} more"]
    worst = constants.found[0] if constants.found else None
    metrics = {
        "introduced_error": number(1 - worst.share) if worst else None,
        "worst_constant": worst.name if worst else None,
        "constants": len(constants.found),
    }
    return Check(subject, len(constants.found), metrics, record(tolerance), tuple(problems))


def _used(
    graph: ExportedGraph, target: ComponentManifest, on_host: Collection[str]
) -> Iterator[tuple[str, Array]]:
    """Float constants of the nets; of those cut to the text's length, the rows within reach.

    ``on_host`` are the indices that the host looks up: what nothing else reads is in no net. A
    vocabulary's embeddings, tied to the head, are read twice.
    """
    nodes = graph.model.graph.node
    sliced = {node.input[0] for node in nodes if node.op_type == "Slice"}
    in_nets = {
        name
        for node in nodes
        if not (node.op_type == "Gather" and node.input[1] in on_host)
        for name in node.input
    }
    rows = _text_length(target)
    for name, tensor in graph.initializers.items():
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and name in in_nets:
            yield name, array[:rows] if name in sliced and array.ndim == 2 else array


def _text_length(target: ComponentManifest) -> int | None:
    names = (_IDS, *(lookup.input for net in target.nets for lookup in net.host_lookups))
    lengths = [
        spec.shape[1] for net in target.compiled_nets for spec in net.inputs if spec.name in names
    ]
    return max((length for length in lengths if isinstance(length, int)), default=None)


def _table(
    graph: ExportedGraph, target: ComponentManifest, lookup: HostLookup
) -> Iterator[tuple[str, str]]:
    """A table for the host row by row: swapped rows hold the right values in the wrong places."""
    exported = [
        node.input[0]
        for node in graph.model.graph.node
        if node.op_type == "Gather"
        and node.input[0] in graph.initializers
        and node.input[1] == lookup.indices
    ]
    if not exported:
        yield lookup.table, f"no exported constant is looked up by {lookup.indices}"
    table = np.load(target.folder / lookup.table, allow_pickle=False)
    kind: Format = "float16" if table.dtype == np.float16 else "float32"
    for name in exported:
        right = numpy_helper.to_array(graph.initializers[name])
        if right.shape != table.shape:
            shapes = f"{list(table.shape)} instead of {list(right.shape)}"
            yield name, f"{lookup.table} has shape {shapes}"
            continue
        wrong = _wrong_rows(bits(right, kind), bits(table.astype(np.float32), kind))
        if wrong:
            shown = ", ".join(map(str, wrong[:4]))
            more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            yield name, f"row {shown}{more} of {lookup.table} is not the exported one"


def _wrong_rows(right: Array, table: Array) -> Sequence[int]:
    return [int(row) for row in np.flatnonzero((right != table).any(axis=1))]
