"""A planted defect, and what each kind of them has in common."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.schema import Task
from tests.faults.graph_changes import Change, graph
from tests.faults.ir_changes import Change as IrChange
from tests.faults.ir_changes import ir

#: Artifact folders of the chips.
CHIP_FOLDERS = {"bm1684": "BM1684", "bm1684x": "BM1684X", "bm1688": "BM1688"}

Plant = Callable[[Path], None]


@dataclass(frozen=True)
class Fault:
    """One defect.

    ``plant`` changes the task folder, ``active`` is entered while the artifacts are used (defects
    of the runtime). ``named`` must be found in the bisection's verdict.
    """

    name: str
    task: Task
    target: str
    named: str
    plant: Plant = lambda _: None
    active: Callable[[], AbstractContextManager[Any]] = nullcontext
    component: str | None = None
    #: of the artifact, where it has one
    precision: str = "f16"

    @property
    def on_chip(self) -> bool:
        """Whether it is a BModel's, judged by its component alone: the simulator takes long."""
        return self.target in CHIP_FOLDERS


def graph_fault(name: str, task: Task, component: str, change: Change, named: str) -> Fault:
    """A changed exported graph."""
    named = f"export: {component} {named}"
    return Fault(name, task, "onnx", named, graph(component, change), component=component)


def ir_fault(name: str, task: Task, component: str, change: IrChange, named: str) -> Fault:
    """A changed IR beside the right exported graph."""
    return ir_file_fault(name, task, component, ir(component, change), named)


def ir_file_fault(name: str, task: Task, component: str, plant: Plant, named: str) -> Fault:
    """An IR whose files or manifest are changed in another way."""
    named = f"target: {component} {named}"
    return Fault(f"IR: {name}", task, "openvino", named, plant, component=component)


def integer_fault(name: str, task: Task, component: str, change: IrChange, named: str) -> Fault:
    """A changed IR of integers."""
    return Fault(
        f"int8 IR: {name}",
        task,
        "openvino",
        f"target: {component} {named}",
        ir(component, change, "int8"),
        component=component,
        precision="int8",
    )


def host_fault(name: str, task: Task, named: str, **how: Any) -> Fault:
    """A defect beside right graphs: a file (``plant``) or the runtime (``active``)."""
    return Fault(name, task, "onnx", named, **how)
