"""Gap one: HuggingFace model against our wrapper, checked at export and recorded for replay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from configs.errors import ParityError
from configs.schema import Component
from configs.tolerances import load_tolerances
from export.component import Case, ComponentModule
from export.samples import Samples

#: recorded cases of one component stay below this; all cases are checked
MAXIMUM_RECORD_BYTES = 150_000_000


@dataclass(frozen=True)
class Outcome:
    """What comparing a component's cases found."""

    cases: int
    worst_relative_error: float
    #: arrays of the recorded cases, keyed as docs/manifest.md says
    record: dict[str, Any]


def check(
    component: Component, module: ComponentModule, wrapper: nn.Module, samples: Samples
) -> Outcome:
    """Runs every case through the wrapper and compares it with the unmodified model.

    Raises:
        ParityError: a difference beyond the tolerance, or nothing to compare.
    """
    tensors = module.tensors(samples.settings)
    names = [spec.name for spec in tensors.outputs]
    worst, count, room = 0.0, 0, MAXIMUM_RECORD_BYTES
    record: dict[str, Any] = {}
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    for case in module.cases(samples):
        if case.inputs is not inputs:  # consecutive cases may share inputs
            inputs = case.inputs
            result = wrapper(*(inputs[spec.name] for spec in tensors.inputs))
            results = result if isinstance(result, tuple) else (result,)
            outputs = dict(zip(names, results, strict=True))
        worst = max(worst, _compare(component, case, outputs))
        count += 1
        if case.stored:
            arrays = _arrays(case, outputs)
            size = sum(array.nbytes for array in arrays.values())
            if size <= room or not record:
                record |= arrays
                room -= size
    if count == 0:
        raise ParityError(f"{samples.settings.task} {component}: nothing was compared")
    return Outcome(count, worst, record)


def _compare(component: Component, case: Case, outputs: dict[str, torch.Tensor]) -> float:
    """The worst error relative to the model's own scale, over all outputs of a case."""
    worst = 0.0
    allowed = load_tolerances().component(
        gap="hf_vs_wrapper",
        target="onnx",
        precision="f32",
        arithmetic="f32",
        component=component,
    )
    limit = allowed.max_relative_error
    if not case.model:
        raise ParityError(f"{component}: {case.name}: nothing to compare with")
    for name, expected in case.model.items():
        actual = outputs[name]
        if actual.dim() > 2:
            rows = expected.shape[1]
            actual = actual[:, :rows] if case.padding == "right" else actual[:, -rows:]
        if actual.shape != expected.shape:
            raise ParityError(
                f"{component}: {case.name}: {name} has shape {tuple(actual.shape)}, the model's is "
                f"{tuple(expected.shape)}"
            )
        scale = float(expected.abs().max())
        difference = float((actual - expected).abs().max())
        error = difference / scale if scale > 0 else difference
        # `not <=` so that a NaN fails too.
        if not error <= limit:
            raise ParityError(
                f"{component}: {case.name}: {name} differs from the HuggingFace model by "
                f"{error:.2e} relative to its scale, allowed is {limit:.0e}; nothing was "
                "written. Report this with the checkpoint's name"
            )
        worst = max(worst, error)
    return worst


def _arrays(case: Case, outputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    groups = {"inputs": case.inputs, "outputs.model": case.model, "outputs.wrapper": outputs}
    return {
        f"{case.name}/{group}/{name}": numpy.ascontiguousarray(value.numpy())
        for group, tensors in groups.items()
        for name, value in tensors.items()
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Writes the recorded cases; the same record gives the same bytes."""
    numpy.savez(path, **record)
