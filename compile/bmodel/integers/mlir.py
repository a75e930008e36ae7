"""Reads the text of the vendor's MLIR: operations, their names, types and sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_LOCATION = re.compile(r'^(#loc\d*) = loc\("?(?P<name>.*?)"?\)$')
_FUSED = re.compile(r"^fused\[(?P<first>#loc\d+)")
_OPERATION = re.compile(
    r'^\s*(?P<results>%[\w:, %]+) = "(?P<type>\w+\.\w+)"\((?P<operands>[^)]*)\)'
    r".* : \((?P<inputs>.*)\) -> (?P<outputs>.*) loc\((?P<location>#loc\d*)\)$"
)
_TENSOR = re.compile(r"tensor<((?:\d+x)*)((?:[^<>]|<(?:[^<>]|<[^<>]*>)*>)+)>|none")
_SUFFIX = re.compile(r"_[A-Za-z0-9]+$")

#: Operations that only move data: they take the type of what they are given.
_MOVING = {"Reshape", "Permute", "Unsqueeze", "Squeeze", "Slice", "Concat", "Cast", "Identity"}
_WEIGHTS = {"Weight", "None"}


@dataclass(frozen=True)
class Operation:
    """One operation of a module. Shapes are integers, types as printed, e.g. ``f16``, ``i8``."""

    name: str
    kind: str
    #: names of the operations whose results it takes; weights have theirs, too
    inputs: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    input_types: tuple[str, ...]
    output_shape: tuple[int, ...]
    output_type: str
    #: whether each input is a weight
    constant: tuple[bool, ...]

    @property
    def tensor(self) -> str:
        """Name of the ONNX tensor it computes: the tool appends the operator's name."""
        return _SUFFIX.sub("", self.name)

    @property
    def moves_data(self) -> bool:
        """Whether it computes nothing."""
        return self.kind in _MOVING

    @property
    def reorders(self) -> bool:
        """Whether it moves all of its data, and may do so as integers: BM1684's Slice may not."""
        return self.moves_data and self.kind != "Slice"

    @property
    def multiplications(self) -> int:
        """Multiply-accumulates of a matrix product, convolution or fused attention, else 0."""
        outputs = math.prod(self.output_shape)
        if self.kind in {"Conv", "Conv2D"}:
            return outputs * math.prod(self.input_shapes[1][1:])
        if self.kind == "MatMul":
            return outputs * self.input_shapes[0][-1]
        if self.kind in {"Attention", "FAttention"} and len(self.input_shapes[0]) > 1:
            keys = self.input_shapes[1] if len(self.input_shapes[1]) > 1 else self.input_shapes[0]
            rows = math.prod(self.output_shape[:-1])
            # One of the vendor's fused operators holds its linear layers as well.
            linear = sum(
                math.prod(shape) * rows
                for shape, constant in zip(self.input_shapes, self.constant, strict=False)
                if constant and len(shape) > 1 and shape[-1] > 1 and shape[-2] > 1
            )
            return 2 * outputs * keys[1] + linear
        return 0

    @property
    def integer(self) -> bool:
        """Whether it computes on integers: its first input is quantised."""
        return bool(self.input_types) and is_integer(self.input_types[0])

    @property
    def moved_bytes(self) -> int:
        """Bytes of all inputs and of the output, each once: traffic without any fusion."""
        sizes = zip(self.input_shapes, self.input_types, strict=True)
        inputs = sum(math.prod(shape) * width_bytes(kind) for shape, kind in sizes if kind)
        return int(inputs + math.prod(self.output_shape) * width_bytes(self.output_type))


def is_integer(printed: str) -> bool:
    """Whether an element type is an 8-bit or 4-bit integer, scaled or plain."""
    return bool(re.match(r"(!quant\.uniform<)?[su]?i[48]\b", printed))


def width_bytes(printed: str) -> float:
    """Size of an element in bytes."""
    found = re.search(r"(?:^|<)[subf]*[if](\d+)", printed) or re.search(r"(\d+)", printed)
    return int(found[1]) / 8 if found else 0.0


def read_operations(path: Path) -> list[Operation]:
    """All operations of a module but weights, in order; its inputs are of kind ``Input``."""
    return parse_operations(path.read_text(encoding="utf-8").splitlines())


def parse_operations(lines: Iterable[str]) -> list[Operation]:
    """The same from text."""
    text = list(lines)
    locations: dict[str, str] = {}
    for line in text:
        if match := _LOCATION.match(line):
            locations[match[1]] = match["name"]
    for key, name in list(locations.items()):
        if fused := _FUSED.match(name):
            locations[key] = locations.get(fused["first"], name)
    values: dict[str, tuple[str, bool]] = {}
    found = []
    for line in text:
        match = _OPERATION.match(line)
        if match is None:
            continue
        kind = match["type"].split(".")[1]
        name = locations.get(match["location"], "")
        results = [part.strip() for part in match["results"].split(",")]
        for result in results:
            values[result.split(":")[0]] = (name, kind in {"Weight", "None"})
        if kind in _WEIGHTS:
            continue
        operands = [part.strip().split("#")[0] for part in match["operands"].split(",") if part]
        named = [values.get(operand, ("", False)) for operand in operands]
        inputs = [_tensor(one) for one in _TENSOR.finditer(match["inputs"])]
        outputs = [_tensor(one) for one in _TENSOR.finditer(match["outputs"])]
        found.append(
            Operation(
                name=name,
                kind=kind,
                inputs=tuple(name for name, _ in named),
                input_shapes=tuple(shape for shape, _ in inputs),
                input_types=tuple(kind for _, kind in inputs),
                output_shape=outputs[0][0] if outputs else (),
                output_type=outputs[0][1] if outputs else "",
                constant=tuple(constant for _, constant in named),
            )
        )
    return found


def _tensor(match: re.Match[str]) -> tuple[tuple[int, ...], str]:
    if match[0] == "none":
        return (), ""
    return tuple(int(size) for size in match[1].split("x") if size), match[2]
