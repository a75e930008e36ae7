"""Quality gates of ``verify``: metrics on the very answers that token checks compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from configs.schema import PipelineConfig, QualityGate, Task
from configs.tolerances import Gate, load_tolerances
from verify.answers.cases import Case
from verify.answers.metrics.answers import exact_answer, soft_accuracy
from verify.answers.metrics.bootstrap import compare
from verify.answers.metrics.captions import Cider, bleu_counts, corpus_bleu, exact_match
from verify.answers.metrics.gates import fitting, gate_of, judged
from verify.answers.metrics.statistics import AreaUnderCurve, Statistic, mean
from verify.artifacts import TargetArtifacts, arithmetic
from verify.results import Check

#: Paired bootstrap of a drop (verify/answers/metrics/bootstrap.py).
_REPLICATES = 1000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Quality:
    """Metrics of both sides on the same cases, and which limits were not kept."""

    metrics: dict[str, dict[str, float]]
    gates: tuple[dict[str, Any], ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class NamedGate:
    """The gate of one target's answers, and where it stands."""

    gate: QualityGate
    source: str


def named_gate(
    pipeline: PipelineConfig, task: Task, artifacts: TargetArtifacts, mode: str, file: str
) -> NamedGate | None:
    """The most specific gate of a pipeline file that fits, or None."""
    found = gate_of(
        pipeline.verify.gates.get(task, {}),
        target=artifacts.name,
        precision=artifacts.precision,
        mode=mode,
    )
    if found is None:
        return None
    name, gate = found
    return NamedGate(gate, f"{file}: verify.gates.{task}.{name}")


def asked_agreement(
    pipeline: PipelineConfig, task: Task, artifacts: TargetArtifacts, mode: str, file: str
) -> Gate | None:
    """The share of equal answers that a pipeline file asks for, or None where it says nothing."""
    gates = pipeline.verify.gates.get(task, {})
    found = fitting(gates, target=artifacts.name, precision=artifacts.precision, mode=mode)
    for name, gate in found:
        if gate.min_agreement is not None:
            return Gate(gate.min_agreement, f"{file}: verify.gates.{task}.{name}")
    return None


def usual_agreement(artifacts: TargetArtifacts, mode: str) -> Gate:
    """The share of equal answers where a pipeline file says none."""
    computed = arithmetic(artifacts, mode)
    return load_tolerances().gate(
        target=artifacts.name, precision=artifacts.precision, arithmetic=computed
    )


def text_quality(
    cases: Sequence[Case],
    expected: Sequence[str],
    found: Sequence[str],
    gate: NamedGate | None,
) -> Quality:
    """Captions or answers as text, without prompts."""
    return _quality(_text_metrics(cases, found), _text_metrics(cases, expected), gate)


def match_quality(
    cases: Sequence[Case],
    expected: Sequence[float],
    found: Sequence[float],
    gate: NamedGate | None,
) -> Quality:
    """Matching probabilities."""
    return _quality(_match_metrics(cases, found), _match_metrics(cases, expected), gate)


def with_quality(check: Check, quality: Quality) -> Check:
    """A check of answers with what they are worth; its agreement was judged before."""
    return replace(
        check,
        metrics={**check.metrics, "quality": quality.metrics},
        tolerance={**check.tolerance, "quality": list(quality.gates)},
        problems=(*check.problems, *quality.problems),
    )


def _quality(
    mine: Mapping[str, Statistic],
    theirs: Mapping[str, Statistic],
    gate: NamedGate | None,
) -> Quality:
    figures = {name: _figures(mine[name], theirs[name]) for name in theirs}
    # What is undefined for the checkpoint, too, says nothing about the target.
    figures = {name: f for name, f in figures.items() if np.isfinite(f["checkpoint"])}
    drops = {name: f["checkpoint"] - f["value"] for name, f in figures.items()}
    judgements = judged(gate.gate, gate.source, None, drops) if gate else []
    return Quality(
        {
            name: {key: round(value, 9) for key, value in f.items() if np.isfinite(value)}
            for name, f in figures.items()
        },
        tuple({name: v for name, v in asdict(j).items() if name != "value"} for j in judgements),
        tuple(j.problem for j in judgements if j.problem),
    )


def _figures(mine: Statistic, theirs: Statistic) -> dict[str, float]:
    """Both values, and between which limits the drop lies."""
    found = compare(mine, theirs, replicates=_REPLICATES, confidence=_CONFIDENCE, seed=0)
    return {
        "value": found.target.value,
        "checkpoint": found.checkpoint.value,
        "drop_low": found.drop.low,
        "drop_high": found.drop.high,
    }


def _text_metrics(cases: Sequence[Case], texts: Sequence[str]) -> dict[str, Statistic]:
    if not cases:
        return {}
    truths = [(str(case.truth),) for case in cases]
    pairs = list(zip(texts, truths, strict=True))
    if cases[0].task == "vqa":
        return {
            "soft_accuracy": mean(np.array([soft_accuracy(text, t) for text, t in pairs])),
            "exact_match": mean(np.array([exact_answer(text, t) for text, t in pairs])),
        }
    cider = Cider()
    for truth in truths:
        cider.count(truth)
    return {
        "exact_match": mean(np.array([exact_match(text, t) for text, t in pairs])),
        "bleu_4": corpus_bleu([bleu_counts(text, t) for text, t in pairs]),
        "cider": mean(np.array([cider.score(text, t) for text, t in pairs])),
    }


def _match_metrics(cases: Sequence[Case], scores: Sequence[float]) -> dict[str, Statistic]:
    if not cases:
        return {}
    values = np.array(scores, dtype=np.float64)
    truth = np.array([case.truth is True for case in cases])
    found: dict[str, Statistic] = {"accuracy": mean((values > 0.5) == truth)}
    if truth.any() and not truth.all():
        found["auc"] = AreaUnderCurve(values, truth, np.arange(len(cases)), len(cases))
    return found
