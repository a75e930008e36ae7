"""Quantize tables as files: readable, editable, committable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from compile.bmodel.integers.mlir import Operation
from compile.bmodel.integers.search import Plan, float_operations, role
from configs.errors import ConfigError
from configs.load import shown
from configs.schema import TargetConfig

#: Ends the name of a table's file.
SUFFIX = ".quantize_table"
_MODES = frozenset({"F32", "F16", "BF16", "INT8"})
#: From a # at the start, or after a blank: names may have one inside.
_COMMENT = re.compile(r"(^|\s)#.*$")
#: Characters of a bad line that a message repeats.
_SHOWN = 80


@dataclass(frozen=True)
class Line:
    """One line of a table: an operation's name, or a pattern with ``*``, and its type."""

    number: int
    pattern: str
    mode: str


def table_file(task: str, net: str, chip: str) -> str:
    """File name of one net's table for one chip; ``net`` is the net's name inside the BModel."""
    return f"{task}_{net}_{chip}{SUFFIX}"


def written(operations: Sequence[Operation], plan: Plan, islands: str, maximum_error: float) -> str:
    """A table with what was measured, as comments."""
    lines = [
        "# Operations that stay in float; all others become INT8. One line each: name, or a",
        "# pattern with *, then the type. Searched for by measurement (docs/quantization.md).",
        f"# relative error of the net's outputs: {plan.error:.4f} (at most {maximum_error:g})",
        "#",
        "# error with only these operations as integers:",
        *(f"#   {one.error:.4f}  {one.name}" for one in plan.sensitivity),
    ]
    roles = {one.name: role(one) for one in operations}
    last = ""
    for name in float_operations(operations, plan.integers):
        if roles[name] != last:
            last = roles[name]
            lines.append(f"# {last}")
        lines.append(f"{name} {islands}")
    if not last:
        lines.append("* INT8")
    return "\n".join(lines) + "\n"


def modes_of(target: TargetConfig) -> frozenset[str]:
    """Types that a table may give an operation on a chip."""
    return _MODES & {precision.upper() for precision in target.precisions}


def read_table(path: Path, modes: frozenset[str] = _MODES) -> list[Line]:
    """A user's table, without looking at the net that it is for.

    Raises:
        ConfigError: not a text, no line, a line that is no name and type, a type that is not one of
            ``modes``, or two types for one name.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise ConfigError(
            f"{shown(path)}: cannot be read ({reason}); write a table as UTF-8 text"
        ) from None
    lines: dict[str, Line] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        parts = _COMMENT.sub("", line).split()
        if not parts:
            continue
        where = f"{shown(path)}: line {number}"
        given = line.strip()[:_SHOWN]
        if len(parts) != 2:
            raise ConfigError(
                f"{where}: {given!r}: give a name and one of {', '.join(sorted(modes))}"
            )
        one = Line(number, parts[0], parts[1].upper())
        if one.mode not in modes:
            raise ConfigError(f"{where}: {given!r}: choose from {', '.join(sorted(modes))}")
        first = lines.setdefault(one.pattern, one)
        if first.mode != one.mode:
            raise ConfigError(
                f"{where}: {given!r}: line {first.number} gives the same name {first.mode}; "
                "remove one of them"
            )
    if not lines:
        raise ConfigError(
            f"{shown(path)}: has no lines; write * INT8 to make integers of everything, "
            "or remove the file to search for what can be"
        )
    return list(lines.values())


def expanded(path: Path, operations: Sequence[Operation], modes: frozenset[str] = _MODES) -> str:
    """A user's table with its patterns written out for one net; later lines undo earlier ones.

    Raises:
        ConfigError: as :func:`read_table`; a line that fits no operation of the net, or that later
            lines undo altogether.
    """
    names = [one.name for one in operations if one.kind != "Input"]
    deciding: dict[str, Line] = {}
    fitting: dict[Line, list[str]] = {}
    for line in read_table(path, modes):
        fitting[line] = [n for n in names if n == line.pattern or fnmatchcase(n, line.pattern)]
        if not fitting[line]:
            raise ConfigError(
                f"{shown(path)}: line {line.number}: {line.pattern}: no operation of this net is "
                "called so; correct or remove the line, or leave out quantize_tables to search anew"
            )
        deciding.update(dict.fromkeys(fitting[line], line))
    for line, fits in fitting.items():
        if all(deciding[name].mode != line.mode for name in fits):
            raise ConfigError(
                f"{shown(path)}: line {line.number}: {line.pattern} {line.mode}: undone by line "
                f"{deciding[fits[0]].number}; put lines for few operations below those for many"
            )
    floats = {name: line.mode for name, line in deciding.items() if line.mode != "INT8"}
    return "".join(f"{name} {floats[name]}\n" for name in names if name in floats)
