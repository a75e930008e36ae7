"""Writes every graph of the reference pipeline as text, to be committed and reviewed.

A library that exports, converts or rewrites otherwise may stay within every tolerance; here it
shows as a diff. Run as ``python -m scripts.golden_graphs`` after such a change was wanted;
``--check`` compares alone.

A line is one operator: its name, attributes, inputs and what it gives. ``-3`` is the result of the
operator three lines above, ``name`` an input of the graph, ``$name`` a constant, listed behind the
first graph that has it; small constants stand as they are.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
from onnx import numpy_helper

from compile.backend import BUDGET_BYTES, read_source
from compile.bmodel.build import BModelBuild
from compile.bmodel.plan import plan_bmodel
from compile.pipeline import jobs
from configs.errors import BlipEdgeError
from configs.layout import CONFIGS_FOLDER, REPOSITORY_ROOT
from pipeline.command import select
from pipeline.tpu_tools.process import MemoryBudget, VendorTools

FOLDER = REPOSITORY_ROOT / "tests" / "golden_graphs"
_INLINE_VALUES = 4
Array = np.ndarray[Any, Any]


class _Text:
    """Lines of one graph."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        #: what stands for a value: a name, a literal, or the line that makes it
        self._names: dict[Any, str | int] = {}
        self._constants: dict[str, str] = {}

    def name(self, value: Any, name: str) -> None:
        """An input of the graph."""
        self._names[value] = name

    def constant(self, value: Any, name: str, array: Array) -> None:
        """A constant: itself where it is small, else a reference to the list of constants."""
        if array.size <= _INLINE_VALUES:
            self._names[value] = f"{array.dtype}{array.tolist()}".replace(" ", "")
            return
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]
        described = f"{array.dtype} {list(array.shape)} {digest}"
        # Where a library numbers constants, its numbers say nothing.
        known = name if name and not name.rpartition("_")[2].isdecimal() else digest
        self._constants[f"${known}"] = described
        self._names[value] = f"${known}"

    def alias(self, value: Any, other: Any) -> None:
        """A value that is another one in another type."""
        self._names[value] = self._names[other]

    def operator(
        self,
        kind: str,
        attributes: Mapping[str, object],
        inputs: Sequence[Any],
        outputs: Mapping[Any, str],
    ) -> None:
        """One line."""
        texts = " ".join(f"{name}={text}" for name, text in sorted(attributes.items()))
        operands = " ".join(map(self.reference, inputs))
        made = " ".join(outputs.values())
        self.lines.append(" ".join(f"{kind} {texts} ({operands}) {made}".split()))
        for output in outputs:
            self._names[output] = len(self.lines)

    def reference(self, value: Any) -> str:
        """How a line names an input."""
        found = self._names.get(value, "none")
        return found if isinstance(found, str) else f"-{len(self.lines) + 1 - found}"

    def whole(self) -> list[str]:
        """The operators, then the constants."""
        return self.lines + [f"{name} {text}" for name, text in sorted(self._constants.items())]


def onnx_lines(path: Path) -> list[str]:
    """An ONNX graph as text."""
    model = onnx.load(path)
    text = _Text()
    for tensor in model.graph.initializer:
        text.constant(tensor.name, tensor.name, numpy_helper.to_array(tensor))
    for value in model.graph.input:
        text.name(value.name, value.name)
        text.lines.append(f"input {value.name} {_declared(value)}")
    for node in model.graph.node:
        if node.op_type == "Constant":
            text.constant(node.output[0], "", numpy_helper.to_array(node.attribute[0].t))
            continue
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        text.operator(
            node.op_type,
            {name: _plain(value) for name, value in attributes.items()},
            [name or None for name in node.input],
            dict.fromkeys(node.output, ""),
        )
    for value in model.graph.output:
        made = text.reference(value.name)
        text.lines.append(f"output {value.name} {_declared(value)} ({made})")
    return text.whole()


def _declared(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = [dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim]
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return f"{kind}[{','.join(sizes)}]"


def _plain(value: object) -> str:
    text = value.decode() if isinstance(value, bytes) else str(value)
    return text.replace(" ", "")


def ir_lines(path: Path) -> list[str]:
    """An OpenVINO IR as text."""
    text = _Text()
    for operation in openvino.Core().read_model(path).get_ordered_ops():
        kind, name = operation.get_type_name(), operation.get_friendly_name()
        values = [output.get_node().get_friendly_name() for output in operation.input_values()]
        values = [
            (value, output.get_index())
            for value, output in zip(values, operation.input_values(), strict=True)
        ]
        outputs = {
            (
                name,
                output.get_index(),
            ): f"{output.get_element_type().to_string()}{output.get_partial_shape()}"
            for output in operation.outputs()
        }
        if kind == "Constant":
            text.constant((name, 0), name.removesuffix("_compressed"), operation.get_data())
        elif (
            kind == "Convert" and operation.input_value(0).get_node().get_type_name() == "Constant"
        ):
            text.alias((name, 0), values[0])
        else:
            attributes = {one: _plain(value) for one, value in operation.get_attributes().items()}
            if kind == "Result":
                # Its own name may be one that the library counts; its tensor's is the contract's.
                name = ",".join(sorted(operation.input_value(0).get_names()))
            named = {"name": name} if kind in {"Parameter", "Result"} else {}
            text.operator(kind, {**attributes, **named}, values, outputs)
    return text.whole()


def render(config: Path) -> dict[str, str]:
    """Text by file name: one per task and component, with its graph for each target."""
    sections: dict[str, dict[str, list[str]]] = {}
    build = BModelBuild(MemoryBudget(BUDGET_BYTES), VendorTools())
    for job in jobs(select(config)):
        source = read_source(job.layout, job.task, job.component)
        file = sections.setdefault(f"{job.task}_{job.component}.txt", {})
        file["onnx"] = onnx_lines(source.onnx)
        if job.target.backend == "openvino":
            # Integers come from statistics, which another processor may round otherwise.
            if job.precision == "f16" and (xml := job.location.file(".xml")).is_file():
                file["openvino f16"] = ir_lines(xml)
            continue
        plan = plan_bmodel(job, source)
        prepared = build.prepare(plan.preparation)
        for net in prepared.nets:
            lines = onnx_lines(plan.known.preparation.intermediate.folder / net.file)
            same = next((name for name, other in file.items() if other == lines), None)
            if same is not None:
                file[f"{same}, {job.target.name}"] = file.pop(same)
            else:
                file[f"{net.name} {job.target.name}"] = lines
    return {name: _file(file) for name, file in sorted(sections.items())}


def _file(sections: Mapping[str, Sequence[str]]) -> str:
    """All graphs of a component; a constant is listed where it first appears."""
    listed: set[str] = set()
    text = ""
    for title, lines in sections.items():
        new = [line for line in lines if line not in listed]
        listed |= {line for line in lines if line.startswith("$")}
        text += "\n".join([f"# {title}", *new, "", ""])
    return text


def differences(config: Path) -> Iterator[str]:
    """Lines of a diff between what is committed and what the pipeline makes."""
    made = render(config)
    for name in sorted({*made, *(path.name for path in FOLDER.glob("*.txt"))}):
        path = FOLDER / name
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        new = made.get(name, "")
        yield from difflib.unified_diff(
            old.splitlines(), new.splitlines(), f"committed/{name}", f"built/{name}", lineterm=""
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.golden_graphs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args(arguments).check
    config = CONFIGS_FOLDER / "reference.yaml"
    try:
        if check:
            found = list(differences(config))
            print("\n".join(found) if found else "graphs: as committed")
            return 1 if found else 0
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name, text in render(config).items():
            (FOLDER / name).write_text(text, encoding="utf-8")
    except BlipEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
