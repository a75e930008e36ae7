"""What a compiled net has to do: operations, bytes moved, and which engine is busy for longer.

Two sources, both left by the vendor's compiler. ``compiler_profile_<core>.txt`` simulates the
command streams of BM1684X and BM1688 cycle by cycle. ``<net>.bmodel.json`` lists every operator
with its tensors' shapes, types and places, for all chips: all there is for BM1684.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.manifest import Work

_OPERATIONS = re.compile(r"^flops: (?P<count>\d+)", re.M)
_CYCLES = re.compile(r"^TCYC : (?P<count>\d+)", re.M)
_MOVED = re.compile(r"dr\[[012]\] \w+:(\d+)")
#: ``...|t:768`` ends an entry of the compute engine, ``|t:99|dr:1|...`` goes on in one of the DMA's
_COMPUTE = re.compile(r"\|t:(\d+)(?!\d|\|dr:)")
_TRANSFER = re.compile(r"\|t:(\d+)\|dr:")
_BANDWIDTH = re.compile(r"^DDR BW USAGE : (?P<percent>[\d.]+)%", re.M)

_PRODUCTS = {"tpu.MatMul", "tpu.A16MatMul", "tpu.Conv2D"}
#: Change a tensor's shape, not its content or place.
_FREE = {"tpu.Reshape", "tpu.Unsqueeze", "tpu.Squeeze"}
_ELEMENT_BYTES = {"4": 4, "32": 4, "16": 2, "8": 1}
_INTEGER = re.compile(r"^[us]?i(8|4)$")


def read_profiles(profiles: Sequence[Path]) -> Work | None:
    """Work of one net from its cores' compiler profiles, or None where the first is missing.

    A small net may leave a core without work and without a profile.

    The shares are of the first core's time: an engine is busy while it executes a command. Bytes
    and the share of the bandwidth are sums over the cores. The compiler gives each core all of it,
    so a sum above 1 says that the estimate cannot hold on silicon.
    """
    cores = [_read_profile(path) for path in profiles]
    found = [core for core in cores if core is not None]
    if not cores or cores[0] is None:
        return None
    shares = [core.bandwidth_share for core in found if core.bandwidth_share is not None]
    return replace(
        found[0],
        moved_bytes=sum(core.moved_bytes for core in found),
        bandwidth_share=round(sum(shares), 4) if len(shares) == len(found) else None,
    )


def _read_profile(path: Path) -> Work | None:
    if not path.is_file():
        return None
    text = path.read_text(errors="replace")
    operations, cycles = _OPERATIONS.search(text), _CYCLES.search(text)
    summary = next((line for line in text.splitlines() if line.startswith("GDMA SUMMARY")), "")
    moved = [int(count) for count in _MOVED.findall(summary)]
    if operations is None or cycles is None or not moved or int(cycles["count"]) == 0:
        return None
    total = int(cycles["count"])
    bandwidth = _BANDWIDTH.search(text)
    return Work(
        operations={"all": int(operations["count"])},
        moved_bytes=sum(moved),
        compute_share=round(sum(map(int, _COMPUTE.findall(text))) / total, 4),
        memory_share=round(sum(map(int, _TRANSFER.findall(text))) / total, 4),
        bandwidth_share=round(float(bandwidth["percent"]) / 100, 4) if bandwidth else None,
    )


def read_operators(path: Path) -> Work | None:
    """Work of one net from the compiler's list of operators, or None where there is none.

    Operations are twice the multiplications of matrix products and convolutions, by the type of
    their weights or right-hand side: ``f32`` or ``int8``. Bytes are what operators outside of layer
    groups read and write, and what groups load and store; a tensor that is read twice counts twice.
    """
    if not path.is_file():
        return None
    operators: Sequence[Mapping[str, Any]] = json.loads(path.read_text())
    operations: Counter[str] = Counter()
    moved = 0
    for operator in operators:
        operands = [tensor for tensor in operator["operands"] if tensor]
        results = [tensor for tensor in operator["results"] if tensor]
        name = operator["opcode"]
        if name in _PRODUCTS and len(operands) > 1:
            operations[_arithmetic(operands[1])] += 2 * _multiplications(name, operands, results[0])
        if name == "tpu.Load":
            moved += _bytes(results[0])
        elif name == "tpu.Store":
            moved += _bytes(operands[0])
        elif not operator["is_local"] and name not in _FREE:
            moved += sum(map(_bytes, (*operands, *results)))
    return Work(operations=dict(operations), moved_bytes=moved)


def _multiplications(
    name: str, operands: Sequence[Mapping[str, Any]], result: Mapping[str, Any]
) -> int:
    sliced = _shape(result)
    if name == "tpu.Conv2D":
        # Weights may be reordered: the output channels stay on the second axis.
        weights = _shape(operands[1])
        channels = int(result["shape"][1])
        return math.prod(sliced) * math.prod(weights) // channels
    return math.prod(sliced) * int(operands[0]["shape"][-1])


def _shape(tensor: Mapping[str, Any]) -> list[int]:
    return [int(size) for size in tensor["memory_type"].strip("<>").split("x")[:-1]]


def _element(tensor: Mapping[str, Any]) -> str:
    return str(tensor["memory_type"].strip("<>").rsplit("x", 1)[-1])


def _arithmetic(tensor: Mapping[str, Any]) -> str:
    element = _element(tensor)
    return "int8" if _INTEGER.match(element) else element


def _bytes(tensor: Mapping[str, Any]) -> int:
    digits = re.sub(r"\D", "", _element(tensor))
    return math.prod(_shape(tensor)) * _ELEMENT_BYTES.get(digits, 4)
