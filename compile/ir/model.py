"""An exported component as an ``openvino.Model`` with its rewrites, each one proved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from compile.backend import Source
from compile.graphs.parity import Arrays, random_inputs, real_inputs
from compile.graphs.static_graph import session
from compile.ir.parity import largest_difference
from compile.ir.plan import MERGE, IrPlan
from compile.ir.rewrites import RewriteModule, Rewritten, merged_cross_key_values
from configs.errors import InputError
from configs.load import shown
from pipeline.manifest import FIRST_LOGIT, Net, Rewrite

if TYPE_CHECKING:
    import openvino

#: A first pass, a step, one that checks drafted tokens, and one of three beams over one context.
_LENGTHS = ((1, 4, 0), (2, 1, 5), (2, 3, 6), (3, 1, 9))


@dataclass(frozen=True)
class RewrittenModel:
    """A rewritten model, how the contract finds its tensors in it, and what was done."""

    model: openvino.Model
    net: Net
    rewrites: tuple[Rewrite, ...] = ()


def read_graph(path: Path) -> openvino.Model:
    """Reads an exported graph.

    Raises:
        InputError: OpenVINO cannot convert it.
    """
    # Here, not above: an unchanged run must not wait for OpenVINO to load.
    import openvino

    try:
        # Not convert_model: it reports every call to a server and gives the same IR.
        return openvino.Core().read_model(path)
    except Exception as error:
        # OpenVINO raises bare RuntimeError and its own frontend errors.
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{shown(path)}: OpenVINO cannot convert this file ({reason}); run: make export FORCE=1"
        ) from None


def rewritten_model(plan: IrPlan) -> RewrittenModel:
    """Reads a component and rewrites it, with the components that are merged into it.

    Raises:
        InputError: OpenVINO cannot convert the graph.
        ToolError: it is not what export writes.
        ParityError: a rewrite changes what it computes.
    """
    source, included = plan.source, plan.included
    # OpenVINO reads an input that has a default as a constant.
    net = replace(source.manifest.nets[0], first_logit=None)
    made = RewrittenModel(read_graph(source.onnx), net)
    if not plan.rewrites:
        return made
    cases = list(_cases(source))
    expected = _expected(cases, source, included)
    for name in plan.rewrites:
        where = f"{plan.job.task} {plan.job.component}: rewrite {name}"
        reason, rewritten = _apply(name, made, included)
        error = largest_difference(made.model, rewritten.net, cases, expected, where)
        record = Rewrite(name=name, reason=reason, sites=rewritten.sites, max_abs_error=error)
        made = replace(made, net=rewritten.net, rewrites=(*made.rewrites, record))
    return made


def _apply(name: str, made: RewrittenModel, included: Sequence[Source]) -> tuple[str, Rewritten]:
    if name == MERGE:
        (other,) = included
        rewritten = merged_cross_key_values.rewrite(
            made.model, made.net, read_graph(other.onnx), other.manifest.nets[0]
        )
        return merged_cross_key_values.REASON, rewritten
    module = cast(RewriteModule, import_module(f"compile.ir.rewrites.{name}"))
    return module.REASON, module.rewrite(made.model, made.net)


def _cases(source: Source) -> Iterator[Arrays]:
    """A real case, and random ones of several lengths."""
    reference = source.location.file(".reference.npz")
    yield from list(real_inputs(reference))[:1]
    tensors = source.manifest.nets[0].inputs
    if source.manifest.component == "vision_encoder":
        return
    for seed, (rows, text, past) in enumerate(_LENGTHS):
        axes = {
            "batch": rows,
            "text_tokens": text,
            "past_tokens": past,
            "total_tokens": past + text,
            "encoder_tokens": 7,
        }
        case = random_inputs(tensors, axes, source.task, seed)
        if source.manifest.nets[0].first_logit and text > 1 and past:
            case[FIRST_LOGIT] = np.array(-text)
        if rows == _LENGTHS[-1][0]:
            # Beams of one context.
            case = {n: a[:1] if n.startswith("cross") else a for n, a in case.items()}
        yield case


def _expected(cases: Sequence[Arrays], source: Source, included: Sequence[Source]) -> list[Arrays]:
    """What the exported graphs answer, one after the other."""
    outputs: list[Arrays] = [{} for _ in cases]
    feeds = [dict(case) for case in cases]
    for part in (source, *included):
        graph = session(part.onnx)
        names = [value.name for value in graph.get_outputs()]
        inputs = [value.name for value in graph.get_inputs()]
        for case, found in zip(feeds, outputs, strict=True):
            wanted = [*inputs, *({FIRST_LOGIT} & case.keys())]
            answers = graph.run(names, {name: case[name] for name in wanted})
            found.update(zip(names, answers, strict=True))
            # The next component's input is this one's output.
            case["encoder_hidden_states"] = found.get("image_embeds", answers[0])
    return outputs
