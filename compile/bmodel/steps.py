"""The steps from an exported graph to BModel files; chips share what does not depend on them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.backend import Job, Source
from compile.bmodel.info import BModelInfo, fusions, latency_estimate_ms, parse_info
from compile.bmodel.work_counts import read_operators, read_profiles
from configs.errors import ToolError
from configs.load import shown
from pipeline.build import tool_versions
from pipeline.manifest import Work, key_of
from pipeline.net_shapes import NetShape, largest_first, net_in_file, net_of, net_shapes
from pipeline.sources import source_digest
from pipeline.tpu_tools import command_lines
from pipeline.tpu_tools.process import MemoryBudget, VendorTools
from pipeline.work_cache import cached, cached_path

if TYPE_CHECKING:
    from compile.bmodel.prepare import Prepared

#: The precision that is calibrated, and its files in a net's deploy folder.
INTEGER = "int8"
THRESHOLDS = "thresholds.txt"
TABLE = "quantize_table.txt"
#: Expected peak memory: a fixed part in bytes and a multiple of the weights (BLIP-base, measured).
_PREPARE_MEMORY = (0.3e9, 2.2)
_TRANSFORM_MEMORY = (0.4e9, 4.8)
_DEPLOY_MEMORY = {"f32": (0.4e9, 4.0), "f16": (0.4e9, 2.0), "bf16": (0.4e9, 2.0)}
_DEPLOY_MEMORY_OTHERS = (0.4e9, 3.0)


def _memory(measured: tuple[float, float], weights_bytes: int) -> int:
    return int(measured[0] + measured[1] * weights_bytes)


@dataclass(frozen=True)
class Graph:
    """An exported graph as one chip family takes it: which nets, after which rewrites."""

    job: Job
    #: None in a dry run before the export
    source: Source | None
    rewrites: tuple[str, ...]

    @property
    def nets(self) -> tuple[NetShape, ...]:
        """Nets and their static lengths, variants included."""
        return shapes_of(self.job, self.source.task.dimensions.image_tokens if self.source else 0)

    @property
    def name(self) -> str:
        """Name of the prepared intermediate."""
        # Named after what was done, not for whom: chips with equal rewrites share the work.
        variant = f"_rewritten_{key_of({'rewrites': self.rewrites})[:6]}" if self.rewrites else ""
        return f"{self.job.task}_{self.job.component}{variant}"

    @property
    def key(self) -> dict[str, Any]:
        """What decides the prepared graphs."""
        return {
            "prepared_by": source_digest(
                "compile.bmodel.prepare",
                by_name=[f"compile.bmodel.rewrites.{name}" for name in self.rewrites],
            ),
            "onnx": self.source.digests if self.source else None,
            "nets": {net.name: dict(net.axes) for net in self.nets},
            "rewrites": list(self.rewrites),
            "tools": tool_versions("onnx", "onnxruntime"),
        }

    @property
    def prepared(self) -> Path:
        """Folder of the prepared graphs."""
        return self._folder(self.name, self.key)

    def top_name(self, net: str) -> str:
        """Name of one net's top-level MLIR intermediate."""
        return f"{self.name}_{net}_top"

    def top_key(self, net: str) -> dict[str, Any]:
        """What decides a net's top-level MLIR."""
        return {"prepared": self.key, "net": net, "tpu_mlir": command_lines.version()}

    def top(self, net: str) -> Path:
        """Folder of one net's top-level MLIR."""
        return self._folder(self.top_name(net), self.top_key(net))

    def _folder(self, name: str, key: dict[str, Any]) -> Path:
        work = self.job.layout.work
        return cached_path(work, name, key) if self.source else work / f"{name}.DIGEST"

    def transform_argv(self, net: str) -> command_lines.Argv:
        """The command that makes one net's top-level MLIR, in a folder beside the prepared one."""
        onnx = f"../{self.prepared.name}/{net}.onnx"
        return command_lines.transform(artifact_net(self.job, net), onnx)


def shapes_of(job: Job, image_tokens: int = 0) -> tuple[NetShape, ...]:
    """Nets of an artifact in every shape that it is compiled for."""
    shapes = job.layout.pipeline.tasks[job.task].shapes
    return net_shapes(job.task, job.component, shapes, image_tokens)


def rewrites_of(job: Job) -> tuple[str, ...]:
    """Names of the rewrites that an artifact's graphs get, in order."""
    target = job.target
    opted_out = ("separate_attention",) if target.attention_fusion == "off" else ()
    chooses = target.decoder_head == "argmax" and job.component == "text_decoder"
    head = ("argmax_head",) if chooses else ()
    integers = target.integer_rewrites if job.built_as == INTEGER else ()
    return tuple(dict.fromkeys((*target.rewrites, *opted_out, *head, *integers)))


def artifact_net(job: Job, net: str) -> str:
    """What a net is called inside the BModel; its variants are stages of that net."""
    return net_in_file(job.component, net_of(job.task, job.component, net))


def bmodel_file(job: Job, net: str | None = None) -> str:
    """File name of the whole artifact, or of one net's own file."""
    return f"{job.location.stem}_{net}.bmodel" if net else f"{job.location.stem}.bmodel"


def is_combined(job: Job) -> bool:
    """Whether the component's nets go into one file with shared weights."""
    return job.target.combine_nets and len(shapes_of(job)) > 1


def deploy_folder(job: Job) -> Path:
    """Where the vendor's compiler works; each net has a folder in it."""
    return job.layout.work / f"{job.location.stem}_deploy"


def deploy_argv(job: Job, net: str) -> command_lines.Argv:
    """The command that compiles one net, in the net's folder."""
    target = job.target
    return command_lines.deploy(
        artifact_net(job, net),
        target.name,
        job.built_as,
        target.cores,
        native_borders=target.borders == "native",
        address_mode=target.address_mode,
        layer_group_search=target.layer_group_search,
        thresholds=THRESHOLDS if job.built_as == INTEGER else None,
        table=TABLE if job.built_as == INTEGER else None,
        scale_per_channel=target.scale_per_channel,
    )


def combine_argv(job: Job) -> command_lines.Argv:
    """The command that puts all nets into one file, in the deploy folder."""
    nets = [shape.name for shape in largest_first(shapes_of(job))]
    parts = [f"{net}/{artifact_net(job, net)}.bmodel" for net in nets]
    return command_lines.combine(parts, bmodel_file(job))


@dataclass(frozen=True)
class Deployed:
    """One net's own BModel."""

    net: str
    bmodel: Path
    estimate_ms: float | None
    fusions: dict[str, int]
    work: Work | None


class Steps:
    """Runs the steps, each within its share of the memory budget."""

    def __init__(self, budget: MemoryBudget, tools: VendorTools) -> None:
        self._budget = budget
        self._tools = tools

    def prepare(self, graph: Graph) -> tuple[Path, Prepared]:
        """Rewritten graphs with fixed shapes, one per net; made once for all chips."""
        # Here, not above: an unchanged run must not wait for onnx and onnxruntime to load.
        from compile.bmodel.prepare import prepare, read_prepared

        source = graph.source
        assert source is not None, "only a dry run goes without"  # noqa: S101

        def make(folder: Path) -> None:
            with self._budget.hold(_memory(_PREPARE_MEMORY, source.size_bytes)):
                prepare(source, graph.nets, graph.rewrites, folder)

        folder = cached(graph.job.layout.work, graph.name, graph.key, make)
        return folder, read_prepared(folder)

    def without_idle_rewrites(self, graph: Graph, prepared: Prepared) -> tuple[Graph, Path]:
        """The same graphs under the name that chips without the idle rewrites know them by.

        Chips whose graphs come out the same then share the MLIR, too.
        """
        from compile.bmodel.prepare import adopt_prepared

        needed = replace(graph, rewrites=prepared.needed)
        work = graph.job.layout.work
        folder = cached(work, needed.name, needed.key, partial(adopt_prepared, graph.prepared))
        return needed, folder

    def measuring(self, weights_bytes: int) -> AbstractContextManager[None]:
        """A share of the memory budget for calibration: two copies of a net and its tensors."""
        return self._budget.hold(_memory(_DEPLOY_MEMORY["f32"], weights_bytes))

    def transform(self, graph: Graph, net: str, weights_bytes: int) -> Path:
        """Top-level MLIR of one net; made once for all chips that take this graph."""
        argv = graph.transform_argv(net)
        name = graph.top_name(net)
        log = graph.job.layout.logs / f"{name}.log"
        wanted = command_lines.transformed(artifact_net(graph.job, net))

        def make(folder: Path) -> None:
            log.unlink(missing_ok=True)
            with self._budget.hold(_memory(_TRANSFORM_MEMORY, weights_bytes)):
                self._tools.run(argv, folder, log)
            _require(folder, wanted, argv, log)
            for path in folder.iterdir():
                if path.name not in wanted:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

        return cached(graph.job.layout.work, name, graph.top_key(net), make)

    def deploy(
        self,
        job: Job,
        net: str,
        top: Path,
        weights_bytes: int,
        attentions: int,
        quantized: Mapping[str, str] | None = None,
    ) -> Deployed:
        """One net's BModel for one chip; ``quantized`` holds the texts of thresholds and table.

        Raises:
            ToolError: the compiler failed, or did not fuse all of the graph's ``attentions`` where
                the target requires it.
        """
        folder = deploy_folder(job) / net
        folder.mkdir(parents=True)
        name = artifact_net(job, net)
        for file in command_lines.transformed(name):
            (folder / file).symlink_to(top / file)
        for file, text in (quantized or {}).items():
            (folder / file).write_text(text)
        log = _log(job, net)
        log.unlink(missing_ok=True)
        argv = deploy_argv(job, net)
        measured = _DEPLOY_MEMORY.get(job.built_as, _DEPLOY_MEMORY_OTHERS)
        with self._budget.hold(_memory(measured, weights_bytes)):
            self._tools.run(argv, folder, log)
        _require(folder, (f"{name}.bmodel",), argv, log)
        made = fusions(log.read_text(encoding="utf-8", errors="replace"))
        check_fusions(job, net, attentions, made)
        profile = job.target.estimate_file
        return Deployed(
            net=net,
            bmodel=folder / f"{name}.bmodel",
            estimate_ms=latency_estimate_ms(folder / profile) if profile else None,
            fusions=made,
            work=_work(job, folder, name),
        )

    def assemble(self, job: Job, deployed: Sequence[Deployed], folder: Path) -> dict[str, str]:
        """Puts the nets' BModels into ``folder``, combined or not; returns each net's file."""
        if is_combined(job):
            self._check_buffers(job, deployed)
            file = bmodel_file(job)
            log = _log(job, "combine")
            log.unlink(missing_ok=True)
            self._tools.run(combine_argv(job), deploy_folder(job), log)
            _require(deploy_folder(job), (file,), combine_argv(job), log)
            shutil.move(deploy_folder(job) / file, folder / file)
            return {one.net: file for one in deployed}
        files = {}
        for one in deployed:
            file = bmodel_file(job, one.net if len(deployed) > 1 else None)
            shutil.move(one.bmodel, folder / file)
            files[one.net] = file
        return files

    def _check_buffers(self, job: Job, deployed: Sequence[Deployed]) -> None:
        """Whether the first stage of each net leaves room for what all others compute with."""
        found: dict[str, dict[str, int]] = {}
        by_name = {one.net: one for one in deployed}
        for shape in largest_first(shapes_of(job)):
            stages = found.setdefault(artifact_net(job, shape.name), {})
            if any(other.is_variant and other.net == shape.net for other in shapes_of(job)):
                stages[shape.name] = self.info(job, by_name[shape.name].bmodel).buffer_bytes
        for stages in found.values():
            check_buffers(job, stages)

    def info(self, job: Job, bmodel: Path) -> BModelInfo:
        """What the finished file says of itself."""
        log = _log(job, f"{bmodel.stem.removeprefix(job.location.stem).strip('_') or 'file'}_info")
        log.unlink(missing_ok=True)
        self._tools.run(command_lines.info(bmodel.name), bmodel.parent, log)
        return parse_info(log.read_text(encoding="utf-8", errors="replace"), bmodel)


def check_fusions(job: Job, net: str, attentions: int, made: dict[str, int]) -> None:
    """Compares the compiler's fusions with the graph's attentions, in half precision.

    Other precisions are recorded only: their fusions depend on the chip and on what stays in float.

    Raises:
        ToolError: an attention was left in single operators, or fused though that is turned off.
    """
    wanted = {"required": attentions, "off": 0}.get(job.target.attention_fusion)
    fused = sum(made.values())
    if job.built_as not in command_lines.HALF_PRECISIONS or wanted in (None, fused):
        return
    raise ToolError(
        f"{job.name} ({net}): {fused} of {attentions} attentions were fused, {wanted} expected: "
        "the graph's shape around softmax, scale or mask differs from what the compiler "
        f"recognises; read {shown(_log(job, net))}, or set targets.{job.target.name}."
        "attention_fusion: recorded in the pipeline file"
    )


def check_buffers(job: Job, stages: Mapping[str, int]) -> None:
    """Compares what the stages of one net need, in bytes, with what the first one reserves.

    The driver takes the buffers of all stages from the first. Where caches of 3 to 5 rows needed
    4 KB more than one of 15, the largest stage gave wrong answers on BM1684X's simulator.

    Raises:
        ToolError: another stage needs more.
    """
    first = next(iter(stages), "")
    large = {name: size for name, size in stages.items() if size > stages[first]}
    if large:
        sizes = ", ".join(f"{name} {size}" for name, size in large.items())
        raise ToolError(
            f"{job.name}: the compiler's buffers of {sizes} bytes exceed those of {first}, "
            f"{stages[first]}, which the driver reserves for all stages, and answers would be "
            f"wrong; change or remove these lengths in tasks.{job.task}.shapes.variants"
        )


def _work(job: Job, folder: Path, name: str) -> Work | None:
    """What the compiler left about a net's work: its profiles, else its list of operators."""
    profile = job.target.estimate_file
    if profile:
        # One file per core; the target's file names the first one's.
        files = [profile.replace("0", str(core)) for core in range(job.target.cores)]
        if found := read_profiles([folder / file for file in files]):
            return found
    return read_operators(folder / f"{name}.bmodel.json")


def _log(job: Job, step: str) -> Path:
    return job.layout.logs / f"{job.location.stem}_{step}.log"


def _require(folder: Path, files: Sequence[str], argv: command_lines.Argv, log: Path) -> None:
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise ToolError(
            f"{argv[0]} ended with exit code 0 but left no {', '.join(missing)}; "
            f"read its log: {shown(log)}"
        )
