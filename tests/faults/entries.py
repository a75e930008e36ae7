"""Entries of the suites of faults: what each kind of fault has in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.graph_changes import Change, graph
from tests.faults.irs import Change as IrChange
from tests.faults.irs import ir


def graph_fault(name: str, task: str, component: str, change: Change, named: str) -> dict[str, Any]:
    """A changed exported graph."""
    return {
        "name": name,
        "task": task,
        "component": component,
        "target": "onnx",
        "plant": graph(component, change),
        "named": f"export: {component} {named}",
    }


def ir_fault(name: str, task: str, component: str, change: IrChange, named: str) -> dict[str, Any]:
    """A changed IR beside the right exported graph."""
    return ir_file_fault(name, task, component, ir(component, change), named)


def ir_file_fault(
    name: str, task: str, component: str, plant: Callable[[Path], None], named: str
) -> dict[str, Any]:
    """An IR whose files or manifest are changed in another way."""
    return {
        "name": f"IR: {name}",
        "task": task,
        "component": component,
        "target": "openvino",
        "plant": plant,
        "named": f"target: {component} {named}",
    }


def integer_fault(
    name: str, task: str, component: str, change: IrChange, named: str
) -> dict[str, Any]:
    """A changed IR of integers."""
    return {
        "name": f"int8 IR: {name}",
        "task": task,
        "component": component,
        "target": "openvino",
        "precision": "int8",
        "plant": ir(component, change, "int8"),
        "named": f"target: {component} {named}",
    }


def other_fault(name: str, task: str, named: str, **how: Any) -> dict[str, Any]:
    """A defect beside right graphs: a file (``plant``) or the runtime (``active``)."""
    return {"name": name, "task": task, "named": named, "target": "onnx", **how}
