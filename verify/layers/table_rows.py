"""Every row of the embedding tables: what a lookup makes of each token id and each position.

Scenes read about a hundred rows of a vocabulary. Here the part of a graph before the first layer
runs on every token id and every position, beside what it was made from. A wrong row, a limit on ids
or positions, or a second table is seen wherever it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx

from runtime.files.number_formats import widened
from runtime.sessions.openvino_session import shared_core
from verify.artifacts import runtime_failures
from verify.layers.correspondence import Pair, tensor_of
from verify.layers.graph import Array, Arrays, ExportedGraph, Runner

#: Embeddings of ids and positions.
Lookup = Callable[[Arrays], Array]
_IDS, _POSITIONS = "input_ids", "position_ids"
#: What comes out of the tables.
_EMBEDDED = Pair("embeddings.norm", "input", "")
#: Rows of tokens per call: some 10 MB of a full-size text model.
_ROWS = 8
_EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def export_row_faults(
    graph: ExportedGraph, tokens: Array, positions: Array, bound: float
) -> list[tuple[str, str]]:
    """(table, which of its rows an exported graph looks up wrongly), by the checkpoint's tables."""
    tensor = tensor_of(graph, _EMBEDDED)
    if tensor is None:
        return []
    part = _exported_lookup(graph, tensor, None)
    sizes = (len(tokens), len(positions))
    return _faults(
        lambda feeds: tokens[feeds[_IDS]] + positions[feeds[_POSITIONS]],
        part,
        sizes,
        (_ROWS, len(positions)),
        bound,
    )


def ir_row_faults(
    ir: Any, graph: ExportedGraph, model: onnx.ModelProto | None, bound: float
) -> list[tuple[str, str]]:
    """(table, which of its rows an IR looks up wrongly).

    Args:
        ir: the IR as OpenVINO reads it.
        graph: the exported graph; one without ids has nothing to look up.
        model: the exported graph with its constants as the IR stores them.
        bound: relative error of one token, as for a layer.

    Raises:
        ToolError: OpenVINO cannot run this part of the IR.
    """
    tensor = tensor_of(graph, _EMBEDDED)
    if _IDS not in graph.inputs or tensor is None:
        return []
    with runtime_failures():
        compiled, (rows, length) = _cut(ir, tensor)
    if compiled is None:
        return [("embeddings", f"the IR has no tensor {tensor}")]
    tokens, positions = _table_sizes(graph, tensor, model)
    names = {name for port in compiled.inputs for name in port.get_names()}

    def found(feeds: Arrays) -> Array:
        with runtime_failures():
            results = compiled({name: feeds[name] for name in feeds if name in names})
            return widened(np.array(results[0]))

    shape = (rows or _ROWS, length or positions)
    right = _exported_lookup(graph, tensor, model)
    return _faults(right, found, (tokens, positions), shape, bound)


def _exported_lookup(graph: ExportedGraph, tensor: str, model: onnx.ModelProto | None) -> Lookup:
    runner = Runner(graph.up_to(tensor, model).SerializeToString())
    return lambda feeds: runner(feeds)[tensor]


def _table_sizes(
    graph: ExportedGraph, tensor: str, model: onnx.ModelProto | None
) -> tuple[int, int]:
    """Rows of the table of tokens, and of the one of positions."""
    part = graph.up_to(tensor, model).graph
    sizes = {one.name: int(one.dims[0]) for one in part.initializer if len(one.dims) == 2}
    lookups = [n.input for n in part.node if n.op_type == "Gather" and n.input[0] in sizes]
    by_id = next((table for table, indices in lookups if indices == _IDS), lookups[0][0])
    tokens = sizes.pop(by_id)
    return tokens, min(sizes.values(), default=tokens)


def _cut(ir: Any, tensor: str) -> tuple[Any, tuple[int | None, int | None]]:
    """The compiled part of an IR that makes a tensor, and the shape of its ids if it is fixed."""
    import openvino

    ports = (port for node in ir.get_ordered_ops() for port in node.outputs())
    port = next((port for port in ports if tensor in port.get_names()), None)
    if port is None:
        return None, (None, None)
    waiting, seen, inputs = [port.get_node()], set(), []
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() in seen:
            continue
        seen.add(node.get_friendly_name())
        if node.get_type_name() == "Parameter":
            inputs.append(node)
        waiting += [source.get_source_output().get_node() for source in node.inputs()]
    ids = next(node for node in inputs if _IDS in node.output(0).get_names())
    rows, length = (
        None if axis.is_dynamic else axis.get_length() for axis in ids.get_partial_shape()
    )
    compiled = shared_core().compile_model(openvino.Model([port], inputs), "CPU", _EXACT)
    return compiled, (rows, length)


def _faults(
    right: Lookup, found: Lookup, sizes: tuple[int, int], shape: tuple[int, int], bound: float
) -> list[tuple[str, str]]:
    """Every token id and position in calls of one shape ``[rows, length]``."""
    tokens, _ = sizes
    rows, length = shape
    calls = -(-tokens // (rows * length))
    at = np.tile(np.arange(length, dtype=np.int64), (rows, 1))
    wrong: list[tuple[int, int]] = []
    for ids in np.resize(np.arange(tokens, dtype=np.int64), (calls, rows, length)):
        feeds = {_IDS: ids, _POSITIONS: at}
        wanted = right(feeds)
        off = np.linalg.norm(found(feeds) - wanted, axis=-1)
        # Written so that NaN is wrong.
        beyond = ~(off <= bound * np.linalg.norm(wanted, axis=-1))
        wrong += zip(ids[beyond].tolist(), at[beyond].tolist(), strict=True)
    return list(_named(wrong, calls * rows))


def _named(wrong: Sequence[tuple[int, int]], lines: int) -> Iterator[tuple[str, str]]:
    """A position that is wrong with every id is a row of positions; what is left are tokens."""
    count: dict[int, int] = {}
    for _, position in wrong:
        count[position] = count.get(position, 0) + 1
    positions = sorted(p for p, times in count.items() if lines > 1 and times >= lines)
    tokens = sorted({token for token, position in wrong if position not in positions})
    for table, rows in (("embeddings.positions", positions), ("embeddings.tokens", tokens)):
        if rows:
            shown = ", ".join(map(str, rows[:4]))
            more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
            yield table, f"a lookup of row {shown}{more} does not give the row"
