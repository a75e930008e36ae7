"""Reads back what the vendor's tools made: nets, tensors, memory, latency estimate, fusions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ToolError
from pipeline.manifest import TensorSpec
from pipeline.tpu_tools import command_lines
from pipeline.tpu_tools.process import VendorTools

_NET = re.compile(r"^net \d+: \[(?P<name>[^\]]+)\]\s+(?P<kind>\w+)")
_TENSOR = re.compile(
    r"^(?P<side>input|output): (?P<name>.+?), \[(?P<shape>[\d, ]*)\], (?P<dtype>\w+),"
)
_MEMORY = re.compile(r"^device mem size: (?P<bytes>\d+)(?: \(.*runtime: (?P<buffers>\d+)\))?")
_STAGE = re.compile(r"^stage (?P<index>\d+)")
_RUNTIME = re.compile(r"runtime: (?P<ms>[\d.]+)ms")
_FUSION = re.compile(r"^(?P<pattern>\w*Attention\w*) : \S+ succeed!", re.M)


@dataclass(frozen=True)
class ArtifactTensor:
    """A tensor as the BModel calls it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ArtifactNet:
    """A net as the BModel describes it."""

    name: str
    inputs: tuple[ArtifactTensor, ...]
    outputs: tuple[ArtifactTensor, ...]


@dataclass(frozen=True)
class BModelInfo:
    """What ``model_tool --info`` prints of a file."""

    #: by name, every stage of it: the same net in another shape
    nets: Mapping[str, tuple[ArtifactNet, ...]]
    device_memory_bytes: int
    #: of those, what the driver reserves for values on their way: as the file's first stage says
    buffer_bytes: int = 0

    def stage(self, name: str, inputs: Mapping[str, tuple[int, ...]]) -> ArtifactNet | None:
        """The stage of a net that takes these shapes, its first one, or None without such a net."""
        stages = self.nets.get(name, ())
        fitting = (
            stage
            for stage in stages
            if {tensor.name: tensor.shape for tensor in stage.inputs} == dict(inputs)
        )
        return next(fitting, stages[0] if stages else None)


def parse_info(lines: Iterable[str], source: Path | str) -> BModelInfo:
    """Parses the output of ``model_tool --info``.

    Raises:
        ToolError: no net, a dynamic net, or no memory size in it.
    """
    nets: dict[str, list[ArtifactNet]] = {}
    sides: dict[str, list[ArtifactTensor]] = {}
    name = None
    memory, buffers = None, 0
    for line in map(str.strip, lines):
        if match := _NET.match(line):
            if match["kind"] != "static":
                raise ToolError(
                    f"{source}: net {match['name']} became {match['kind']}; the session needs "
                    "static nets: look for an operator that the chip cannot compute (rewrites)"
                )
            name = match["name"]
            nets[name] = []
        elif name and _STAGE.match(line):
            sides = {"input": [], "output": []}
            nets[name].append(ArtifactNet(name, (), ()))
        elif name and (match := _TENSOR.match(line)):
            shape = tuple(int(size) for size in match["shape"].split(",") if size.strip())
            sides[match["side"]].append(ArtifactTensor(match["name"], shape, match["dtype"]))
            nets[name][-1] = ArtifactNet(name, tuple(sides["input"]), tuple(sides["output"]))
        elif match := _MEMORY.match(line):
            memory, buffers = int(match["bytes"]), int(match["buffers"] or 0)
    if not all(nets.values()) or not nets or memory is None:
        raise ToolError(f"{source}: model_tool printed no nets or no memory size; rebuild the file")
    return BModelInfo({net: tuple(stages) for net, stages in nets.items()}, memory, buffers)


def read_info(tools: VendorTools, bmodel: Path, log: Path) -> BModelInfo:
    """What a finished file says of itself.

    Raises:
        ToolError: it cannot be read, or as :func:`parse_info`.
    """
    return parse_info(tools.run(command_lines.info(bmodel.name), bmodel.parent, log), bmodel)


def match_inputs(
    expected: Mapping[str, tuple[int, ...]], net: ArtifactNet, source: Path | str
) -> tuple[TensorSpec, ...]:
    """Contract inputs by name; every one must be there in its shape, and no other."""
    found = {tensor.name: tensor for tensor in net.inputs}
    if set(found) != set(expected):
        raise ToolError(
            f"{source}: net {net.name} has inputs {sorted(found)}, expected {sorted(expected)}"
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ToolError(
                f"{source}: net {net.name}: input {name} has shape {found[name].shape}, "
                f"expected {shape}"
            )
    return tuple(_spec(name, found[name]) for name in expected)


def match_outputs(
    expected: Mapping[str, tuple[int, ...]], net: ArtifactNet, source: Path | str
) -> tuple[TensorSpec, ...]:
    """Contract outputs by position: the tools keep the order and append to the names.

    Raises:
        ToolError: count, shape or the beginning of a name differ at any position.
    """
    pairs = list(zip(expected.items(), net.outputs, strict=False))
    agree = len(expected) == len(net.outputs) and all(
        tensor.shape == shape and (tensor.name == name or tensor.name.startswith(f"{name}_"))
        for (name, shape), tensor in pairs
    )
    if not agree:
        made = [(tensor.name, tensor.shape) for tensor in net.outputs]
        raise ToolError(
            f"{source}: net {net.name} has outputs {made}, expected {list(expected.items())}"
        )
    return tuple(_spec(name, tensor) for (name, _), tensor in pairs)


def _spec(name: str, tensor: ArtifactTensor) -> TensorSpec:
    return TensorSpec(name=name, artifact_name=tensor.name, shape=tensor.shape, dtype=tensor.dtype)


def latency_estimate_ms(profile: Path) -> float | None:
    """The latency at the end of a compiler profile, in milliseconds, or None without one."""
    if not profile.is_file():
        return None
    found = _RUNTIME.findall(profile.read_text(errors="replace"))
    return float(found[-1]) if found else None


def fusions(log: Iterable[str]) -> dict[str, int]:
    """How often each attention fusion took place, from a deploy log at level 1."""
    return dict(sorted(Counter(hit for line in log for hit in _FUSION.findall(line)).items()))
