"""Quantize tables as files: readable, editable, committable."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from compile.calibration.mlir import Operation
from compile.calibration.search import Plan, float_operations, role
from configs.errors import ConfigError
from configs.load import shown

#: Ends the name of a table's file.
SUFFIX = ".quantize_table"
_MODES = {"F32", "F16", "BF16", "INT8"}


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
    return "\n".join(lines) + "\n"


def expanded(path: Path, operations: Sequence[Operation]) -> str:
    """A user's table with its patterns written out for one net.

    Raises:
        ConfigError: a line that is no name and type, or that fits no operation of the net.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown(path)}: cannot be read ({error})") from None
    names = [one.name for one in operations if one.kind != "Input"]
    modes: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        parts = line.split("#")[0].split() if line.lstrip().startswith("#") else line.split()
        if not parts:
            continue
        where = f"{shown(path)}: line {number}"
        if len(parts) != 2 or parts[1] not in _MODES:
            raise ConfigError(
                f"{where}: {line.strip()!r}: give a name and one of {', '.join(sorted(_MODES))}"
            )
        fitting = [name for name in names if name == parts[0] or fnmatchcase(name, parts[0])]
        if not fitting:
            raise ConfigError(
                f"{where}: {parts[0]}: no operation of this net is called so; correct or remove "
                "the line, or leave out quantize_tables to search anew"
            )
        modes.update(dict.fromkeys(fitting, parts[1]))
    return "".join(f"{name} {modes[name]}\n" for name in names if modes.get(name, "INT8") != "INT8")
