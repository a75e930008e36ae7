"""Calibrates one net: thresholds, then a quantize table by search or from the user."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compile.backend import Job
from compile.bmodel.integers.fake_quantization import FakeQuantized
from compile.bmodel.integers.mlir import Operation, read_operations
from compile.bmodel.integers.search import Plan, search, table_text
from compile.bmodel.integers.table_folder import given_table
from compile.bmodel.integers.tables import expanded, modes_of, written
from compile.bmodel.integers.thresholds import Range, collect, read_ranges, table, write_ranges
from compile.calibration.examples import examples_digest
from compile.calibration.inputs import Arrays, net_inputs
from compile.graphs.graph import Array
from compile.graphs.static_graph import session
from configs.errors import InputError, ToolError
from configs.layout import Layout
from configs.load import shown
from configs.schema import TASK_COMPONENTS
from pipeline.console import Steps, steps
from pipeline.json_file import append_lines, read_lines
from pipeline.manifest import QuantizedNet, file_sha256, key_of
from pipeline.sources import source_digest
from pipeline.tpu_tools import command_lines
from pipeline.work_cache import cached

if TYPE_CHECKING:
    from compile.bmodel.plan import BModelPlan, NetPlan
    from compile.bmodel.prepare import Prepared

#: How thresholds are chosen (compile/bmodel/integers/thresholds.py).
METHOD = "mse"
_RANGES = "ranges.npz"
#: One sample may be off by this multiple of ``calibration.maximum_error``; verify allows as much.
_WORST_SAMPLE = 3.0
#: Steps of a decoder that the search measures on in place of one input of another net: a step is
#: one token of work, and states that integers disturb most are rare among them.
_STEP, _STEPS_FOR_ONE = "step", 4
_SEARCHED = "search"


@dataclass(frozen=True)
class NetToQuantize:
    """One net of an artifact, transformed and not yet deployed."""

    job: Job
    net: str
    #: what the net is called inside the BModel
    artifact_net: str
    #: prepared graphs with the tables of host lookups
    prepared_folder: Path
    prepared: Prepared
    #: folder of the top-level MLIR
    top: Path

    @property
    def mlir(self) -> Path:
        """The top-level MLIR."""
        return self.top / f"{self.artifact_net}.mlir"


def net_to_quantize(plan: BModelPlan, net: NetPlan, prepared: Prepared, top: Path) -> NetToQuantize:
    """A net of a plan, with the folder of its MLIR."""
    folder = plan.preparation.intermediate.folder
    return NetToQuantize(plan.job, net.name, net.artifact_net, folder, prepared, top)


@dataclass(frozen=True)
class Calibrated:
    """Texts for the vendor's compiler, and the table as a user reads it."""

    thresholds: str
    table: str
    readable: str
    source: str
    measured_error: float | None


def check_table(job: Job, artifact_net: str, top: Path) -> None:
    """Compares a given table with its net, where the net was transformed before.

    Raises:
        ConfigError: it does not fit.
    """
    given = given_table(job, artifact_net)
    mlir = top / f"{artifact_net}.mlir"
    if given is not None and mlir.is_file():
        expanded(given, read_operations(mlir), modes_of(job.target))


def calibration_key(job: Job, artifact_nets: Sequence[str]) -> dict[str, Any]:
    """What decides thresholds and tables besides graph and tools: data, bounds, given tables."""
    calibration = job.layout.pipeline.calibration
    given = {name: given_table(job, name) for name in artifact_nets}
    return {
        "calibration": calibration.model_dump(mode="json"),
        "examples": examples_digest(calibration, job.task),
        "upstream": _upstream(job.layout, job),
        "tables": {name: file_sha256(path) if path else None for name, path in given.items()},
    }


def _upstream(layout: Layout, job: Job) -> dict[str, str]:
    """Digests of the task's exported graphs: they make each other's inputs."""
    from pipeline.manifest import ComponentManifest, read_manifest

    found: dict[str, str] = {}
    for component in TASK_COMPONENTS[job.task]:
        path = layout.onnx(job.task, component).manifest
        if not path.is_file():
            raise InputError(
                f"{shown(path)}: not exported yet, but {job.name} is calibrated with the answers "
                f"of the whole task; run: make export TASK={job.task}"
            )
        found[component] = read_manifest(ComponentManifest, path).key
    return found


def calibrate(one: NetToQuantize) -> Calibrated:
    """Thresholds and table of one net; what was measured is kept in the work folder.

    Raises:
        ConfigError: a given table does not fit the net.
    """
    operations = read_operations(one.mlir)
    given = given_table(one.job, one.artifact_net)
    # A table that does not fit is found before calibrating for it.
    text = expanded(given, operations, modes_of(one.job.target)) if given else ""
    ranges = _ranges(one)
    thresholds, _ = table(operations, ranges, METHOD)
    if given is not None:
        return Calibrated(thresholds, text, text, shown(given), None)
    islands = one.job.chip.integer_islands.upper()
    bound = one.job.layout.pipeline.calibration.maximum_error
    with steps(f"quantize {one.job.name} {one.net}", 0, remaining=True) as progress:
        measure = _Search(one, operations, ranges, progress)
        plan: Plan = search(operations, measure, bound)
    return Calibrated(
        thresholds,
        table_text(operations, plan.integers, islands),
        written(operations, plan, islands, bound),
        _SEARCHED,
        plan.error,
    )


def _ranges(one: NetToQuantize) -> dict[str, Range]:
    """Ranges of all tensors, collected once for all chips that take this graph."""

    def make(folder: Path) -> None:
        count = 2 * one.job.layout.pipeline.calibration.samples
        with steps(f"calibrate {one.job.name} {one.net}", count, remaining=True) as progress:
            graph = one.prepared_folder / f"{one.net}.onnx"
            ranges = collect(graph, lambda: calibration_inputs(one), progress.done)
        write_ranges(ranges, folder / _RANGES)

    name = f"{one.prepared_folder.name.rpartition('.')[0]}_{one.net}_ranges"
    return read_ranges(cached(one.job.layout.work, name, _data_key(one), make) / _RANGES)


def calibration_inputs(one: NetToQuantize) -> Iterator[Arrays]:
    """Inputs of one net as its prepared graph takes them: with the host's lookups done."""
    tables = {
        lookup: np.load(one.prepared_folder / lookup.table) for lookup in one.prepared.lookups
    }
    calibration = one.job.layout.pipeline.calibration
    job = one.job
    for made in net_inputs(job.layout, job.task, calibration, last=job.component):
        if (made.component, made.net) != (job.component, one.net):
            continue
        rows = {lookup.input: rows[made.arrays[lookup.indices]] for lookup, rows in tables.items()}
        yield {**made.arrays, **rows}


def _data_key(one: NetToQuantize) -> dict[str, Any]:
    # The graph as the compiler sees it and the data decide; other sources of this stage do not.
    return {
        "mlir": file_sha256(one.mlir),
        "weights": {name: key_of(_zip_digests(one.top / name)) for name in _weights(one)},
        "calibration": calibration_key(one.job, ()),
        "method": METHOD,
        "source": source_digest("compile.bmodel.integers", without=("compile.calibration",)),
        "tpu_mlir": command_lines.version(),
    }


def _weights(one: NetToQuantize) -> tuple[str, ...]:
    return tuple(n for n in command_lines.transformed(one.artifact_net) if n.endswith(".npz"))


def _zip_digests(path: Path) -> dict[str, str]:
    """Checksums of an archive's members: its own bytes hold the time of writing."""
    from zipfile import ZipFile

    with ZipFile(path) as archive:
        return {item.filename: f"{item.CRC:08x}" for item in archive.infolist()}


class _Search:
    """Measures choices of integer operations; results survive a kill."""

    def __init__(
        self,
        one: NetToQuantize,
        operations: list[Operation],
        ranges: Mapping[str, Range],
        progress: Steps,
    ) -> None:
        target = one.job.chip
        graph = one.prepared_folder / f"{one.net}.onnx"
        self._maker = FakeQuantized(
            graph, operations, ranges, whole_shifts=not target.scale_per_channel
        )
        self._graph = graph
        self._one = one
        self._progress = progress
        self._samples: list[tuple[Arrays, list[Array]]] = []
        key = {**_data_key(one), "one_scale": not target.scale_per_channel}
        name = f"{one.job.task}_{one.artifact_net}_{target.name}_search.{key_of(key)[:12]}"
        self._results = one.job.layout.work / f"{name}.jsonl"
        self._known = _read_results(self._results)
        if self._results.is_file() and not self._results.read_text().endswith("\n"):
            # A kill cut the last line short: what follows must not become a part of it.
            with self._results.open("a") as stream:
                stream.write("\n")

    def __call__(self, wanted: dict[str, frozenset[str]]) -> dict[str, float]:
        """See ``Measure``."""
        self._progress.extend(len(wanted))
        errors = {}
        for name, integers in wanted.items():
            self._progress.start(name)
            digest = key_of({"integers": sorted(integers)})
            if digest not in self._known:
                self._known[digest] = self._measure(integers)
                record = {"digest": digest, "name": name, "error": self._known[digest]}
                append_lines(self._results, [record])
            errors[name] = self._known[digest]
            self._progress.done()
        return errors

    def _measure(self, integers: frozenset[str]) -> float:
        """Root of summed squares relative to the reference's, of the worst output.

        Over all samples, or of one sample over ``_WORST_SAMPLE``, whichever is larger: a mean over
        many inputs hides the few whose attention turns over.
        """
        if not self._samples:
            self._samples = self._read_samples()
        graph = self._maker.session(integers)
        names = [value.name for value in graph.get_inputs()]
        error = np.zeros(len(self._samples[0][1]))
        scale = np.zeros(len(error))
        worst = 0.0
        for inputs, expected in self._samples:
            found = graph.run(None, {name: inputs[name] for name in names})
            for index, (actual, wanted) in enumerate(zip(found, expected, strict=True)):
                if wanted.dtype.kind != "f":
                    # A token that the net chose: near ties change it by any number.
                    continue
                off = float(np.square(actual - wanted, dtype=np.float64).sum())
                full = float(np.square(wanted, dtype=np.float64).sum())
                error[index] += off
                scale[index] += full
                worst = max(worst, math.sqrt(off / max(full, 1e-30)))
        together = float(np.sqrt(error / np.maximum(scale, 1e-30)).max())
        return max(together, worst / _WORST_SAMPLE)

    def _read_samples(self) -> list[tuple[Arrays, list[Array]]]:
        count = self._one.job.layout.pipeline.calibration.measured_samples
        if self._one.net == _STEP:
            count *= _STEPS_FOR_ONE
        graph = session(self._graph)
        taken = [value.name for value in graph.get_inputs()]
        samples = [
            (arrays, graph.run(None, {name: arrays[name] for name in taken}))
            for arrays in islice(calibration_inputs(self._one), count)
        ]
        if not samples:
            raise InputError(
                f"{self._one.job.name}: no calibration example reaches net {self._one.net}; "
                "give other ones (calibration.source) or more (calibration.samples)"
            )
        return samples


def _read_results(path: Path) -> dict[str, float]:
    found = {}
    for record in read_lines(path):
        digest, error = record.get("digest"), record.get("error")
        # What a kill or a damage left is measured again.
        if isinstance(digest, str) and isinstance(error, float):
            found[digest] = error
    return found


#: Operations of a compiled net that move or convert data, or stand for the compiler's own doings.
_NO_WORK = {"Load", "Store", "Group", "Yield", "Cast", "Buffer", "None", "Input", "Move"}


def quantized_net(
    folder: Path, name: str, calibrated: Calibrated, table_name: str, thresholds_name: str
) -> QuantizedNet:
    """What really became integers, counted in what the compiler left in a net's deploy folder.

    Operations are counted in its last module. Multiplications are counted as it lowered them: the
    last module holds weights packed for the chip, whose shapes no longer say how many there are.

    Raises:
        ToolError: the compiler left no lowered module.
    """
    lowered = sorted(folder.glob(f"{name}_*_tpu.mlir"))
    if not lowered:
        raise ToolError(f"{shown(folder)}: model_deploy.py left no {name}_*_tpu.mlir")
    products = [o for o in read_operations(lowered[0]) if o.multiplications]
    total = sum(o.multiplications for o in products)
    share = sum(o.multiplications for o in products if o.integer) / total if total else 0.0
    operations = read_operations(folder / name / "final.mlir")
    computing = [o for o in operations if not o.moves_data and o.kind not in _NO_WORK]
    integers = [o for o in computing if o.integer]
    return QuantizedNet(
        table=table_name,
        thresholds=thresholds_name,
        source=calibrated.source,
        integer_operations=len(integers),
        float_operations=len(computing) - len(integers),
        integer_share=round(share, 4),
        measured_error=calibrated.measured_error,
    )
