"""Ranges of every tensor of a net over the calibration inputs, as the vendor's table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from compile.bmodel.integers.mlir import Operation
from compile.graphs.graph import Array, load_graph, saved_beside
from compile.graphs.static_graph import session
from configs.errors import ToolError

#: Bins of a histogram of absolute values, and thresholds tried on it.
_BINS = 2048
_TRIED = 64
#: Largest integer of a symmetric 8-bit quantiser.
_LEVELS = 127
_LEAST = 1e-5


class Range:
    """Smallest and largest value of one tensor, and later the histogram of its absolute values."""

    def __init__(self) -> None:
        self.low, self.high = 0.0, 0.0
        self.histogram: NDArray[np.int64] = np.zeros(_BINS, dtype=np.int64)

    @property
    def largest(self) -> float:
        """Largest absolute value."""
        return max(-self.low, self.high, _LEAST)

    def threshold(self) -> float:
        """The clipping threshold with the least squared error of a symmetric 8-bit quantiser.

        Below the threshold a value's squared error is that of uniform rounding, step squared over
        12; above, it is the squared distance to the threshold.
        """
        centres = (np.arange(_BINS) + 0.5) * self.largest / _BINS
        best, least = self.largest, np.inf
        for part in np.linspace(0.2, 1.0, _TRIED):
            threshold = float(part) * self.largest
            clipped = centres > threshold
            error = float(self.histogram[~clipped].sum()) * (threshold / _LEVELS) ** 2 / 12
            error += float((self.histogram[clipped] * (centres[clipped] - threshold) ** 2).sum())
            if error < least:
                best, least = threshold, error
        return best


def collect(
    graph: Path, samples: Callable[[], Iterable[Mapping[str, Array]]], on_sample: Callable[[], None]
) -> dict[str, Range]:
    """Ranges of all tensors of an ONNX graph with fixed shapes; two passes over the samples.

    Args:
        graph: prepared graph; its weights lie beside it.
        samples: makes an iterator over inputs.
        on_sample: called after every run, twice per sample.
    """
    model = load_graph(graph)
    outputs = {value.name for value in model.graph.output}
    inner = [name for node in model.graph.node for name in node.output if name not in outputs]
    # onnxruntime infers the types of outputs that have none.
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner if name)
    with saved_beside(model, graph) as probe:
        running = session(probe)
    names = [value.name for value in running.get_outputs()]
    taken = [value.name for value in running.get_inputs()]
    ranges: dict[str, Range] = {}

    def values(inputs: Mapping[str, Array]) -> Iterable[tuple[str, Array]]:
        feeds = {name: inputs[name] for name in taken}
        found = dict(zip(names, running.run(names, feeds), strict=True)) | feeds
        return ((n, a) for n, a in found.items() if a.size and a.dtype.kind in "fiu")

    for inputs in samples():
        for name, array in values(inputs):
            one = ranges.setdefault(name, Range())
            one.low = min(one.low, float(array.min()))
            one.high = max(one.high, float(array.max()))
        on_sample()
    for inputs in samples():
        for name, array in values(inputs):
            one = ranges[name]
            counts, _ = np.histogram(np.abs(array), _BINS, (0.0, one.largest))
            one.histogram += counts
        on_sample()
    return ranges


def table(
    operations: list[Operation], ranges: Mapping[str, Range], method: str
) -> tuple[str, list[str]]:
    """The vendor's threshold table for a top-level MLIR; and the operations it has no range for.

    Raises:
        ToolError: next to nothing could be related to the graph.
    """
    lines = ["# op_name    threshold    min    max"]
    known: dict[str, Range] = {}
    missing = []
    for operation in operations:
        found = ranges.get(operation.tensor) or ranges.get(operation.name)
        if found is None and operation.inputs and operation.moves_data:
            found = known.get(operation.inputs[0])
        if found is None:
            missing.append(operation.name)
            continue
        known[operation.name] = found
        chosen = found.threshold() if method == "mse" else found.largest
        lines.append(f"{operation.name} {chosen:.7f} {found.low:.7f} {found.high:.7f}")
    if len(missing) > len(operations) // 4:
        raise ToolError(
            f"calibration: {len(missing)} of {len(operations)} operations have no range, e.g. "
            f"{missing[0]}; the compiler names its operations differently"
        )
    return "\n".join(lines) + "\n", missing


def write_ranges(ranges: Mapping[str, Range], path: Path) -> None:
    """Stores ranges."""
    np.savez_compressed(
        path,
        names=np.array(list(ranges)),
        limits=np.array([(one.low, one.high) for one in ranges.values()]),
        histograms=np.array([one.histogram for one in ranges.values()]),
    )


def read_ranges(path: Path) -> dict[str, Range]:
    """What :func:`write_ranges` stored."""
    found = {}
    with np.load(path) as stored:
        rows = zip(stored["names"], stored["limits"], stored["histograms"], strict=True)
        for name, (low, high), histogram in rows:
            one = Range()
            one.low, one.high, one.histogram = float(low), float(high), histogram
            found[str(name)] = one
    return found
