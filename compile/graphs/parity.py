"""Proof that a changed graph computes what the plain one does, under onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from compile.graphs.graph import Array
from compile.graphs.static_graph import session
from configs.errors import ParityError
from configs.tolerances import load_tolerances
from pipeline.manifest import TaskManifest, TensorSpec
from pipeline.net_shapes import bind

if TYPE_CHECKING:
    from compile.bmodel.rewrites import Lookup

Arrays = dict[str, Array]

#: Real cases to replay, at most.
_REAL_CASES = 2


def random_inputs(
    tensors: Sequence[TensorSpec], axes: Mapping[str, int], task: TaskManifest, seed: int
) -> Arrays:
    """Inputs of given lengths: valid ids, masks that leave something to attend, normal values."""
    generator = np.random.default_rng(seed)
    rows = {
        "input_ids": task.text.vocabulary_size,
        "position_ids": task.text.maximum_positions,
    }
    dtypes = {tensor.name: tensor.dtype for tensor in tensors}
    inputs: Arrays = {}
    for name, shape in bind(tensors, axes).items():
        value: Array
        if name in rows:
            value = generator.integers(0, rows[name], shape)
        elif name.endswith("attention_mask"):
            visible = generator.random(shape) < 0.8
            visible[..., 0] = True
            floating = np.issubdtype(np.dtype(dtypes[name]), np.floating)
            value = np.where(visible, 0.0, -10000.0) if floating else visible.astype(np.int64)
        else:
            value = generator.standard_normal(shape)
        inputs[name] = value.astype(dtypes[name])
    return inputs


def real_inputs(reference: Path) -> Iterator[Arrays]:
    """Inputs of the first cases that export recorded from real images and texts, if it did."""
    if not reference.is_file():
        return
    with np.load(reference) as stored:
        cases = list(dict.fromkeys(key.split("/")[0] for key in stored.files))
        for case in cases[:_REAL_CASES]:
            prefix = f"{case}/inputs/"
            yield {k.removeprefix(prefix): stored[k] for k in stored.files if k.startswith(prefix)}


def with_lookups(inputs: Arrays, lookups: Sequence[Lookup]) -> Arrays:
    """Inputs for a graph whose lookups moved to the host."""
    rows = {lookup.input: lookup.table[inputs[lookup.indices]] for lookup in lookups}
    return {**inputs, **rows}


class PlainGraph:
    """The unchanged graph with its outputs for a set of inputs."""

    def __init__(self, graph: Path, cases: Sequence[Arrays]) -> None:
        self.cases = cases
        plain = session(graph)
        self.outputs = [_run(plain, case) for case in cases]

    def check(self, changed: Path, what: str, lookups: Sequence[Lookup] = ()) -> float:
        """Largest absolute difference of the changed graph over all cases and outputs.

        Raises:
            ParityError: an output differs by more than limit ``rewritten_graph`` or is not finite.
        """
        other = session(changed)
        largest = 0.0
        for case, expected in zip(self.cases, self.outputs, strict=True):
            actual = _run(other, with_lookups(case, lookups))
            for name, reference in expected.items():
                largest = max(largest, difference(name, reference, actual[name], what))
        return largest


def _run(graph: onnxruntime.InferenceSession, inputs: Arrays) -> Arrays:
    names = [value.name for value in graph.get_outputs()]
    taken = {value.name: inputs[value.name] for value in graph.get_inputs()}
    given = (value.name for value in graph.get_overridable_initializers())
    taken |= {name: inputs[name] for name in given if name in inputs}
    return dict(zip(names, graph.run(names, taken), strict=True))


def difference(name: str, reference: Array, actual: Array, what: str) -> float:
    """Largest absolute difference of one output.

    Raises:
        ParityError: it exceeds limit ``rewritten_graph`` of the output's scale, or is not finite.
    """
    if reference.shape != actual.shape:
        raise ParityError(f"{what}: {name} has shape {actual.shape}, not {reference.shape}")
    error = float(np.max(np.abs(reference.astype(np.float64) - actual.astype(np.float64))))
    bound = load_tolerances().limit("rewritten_graph") * max(float(np.max(np.abs(reference))), 1e-6)
    # Written so that NaN fails.
    if not error <= bound:
        raise ParityError(
            f"{what}: {name} differs from the plain graph under onnxruntime by {error:.3g} "
            f"(at most {bound:.3g}); correct the rewrite before compiling"
        )
    return error
