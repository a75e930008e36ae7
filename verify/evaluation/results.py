"""The result file of one task on one data set (docs/evaluation.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from configs.layout import Layout
from configs.schema import EvaluateConfig, Precision, Task
from pipeline.atomic import write_atomically
from pipeline.build import tool_versions
from pipeline.json_file import stored
from pipeline.manifest import key_of
from runtime.files.manifests import component_manifests
from verify.answers.metrics.bootstrap import Comparison, Interval
from verify.answers.metrics.gates import Judgement
from verify.artifacts import identity_digest, runtime_failures
from verify.evaluation.comparing import Beside
from verify.evaluation.data_sets import Asked
from verify.evaluation.measures import TITLES
from verify.evaluation.subjects import Subject
from verify.parity.compare import number

SCHEMA_VERSION = 1
CONFIDENCE = 0.95
FOLDER = "evaluation"


def result_path(layout: Layout, asked: Asked) -> Path:
    """``models/artifacts/<pipeline>/evaluation/<task>-<data set>.json``."""
    return layout.root / FOLDER / f"{asked.data_set.task}-{asked.data_set.name}.json"


def subject_record(
    subject: Subject,
    items: int,
    comparisons: dict[str, Comparison],
    beside: Beside,
    gates: list[Judgement],
    worst: list[dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """One subject as it stands in the result."""
    if subject.artifacts is None:
        raise ValueError("the checkpoint is what subjects are compared with")
    return {
        "target": subject.artifacts.name,
        "precision": subject.artifacts.precision,
        "mode": subject.mode,
        "items": items,
        "metrics": {name: _compared(found) for name, found in comparisons.items()},
        "agreement": {"rate": beside.rate, "same": beside.same, "compared": beside.compared},
        "divergence": None if subject.task.task == "itm" else beside.divergence(),
        "gates": [
            {
                "name": gate.name,
                "value": number(gate.value),
                "limit": gate.limit,
                "passed": gate.passed,
                "source": gate.source,
            }
            for gate in gates
        ],
        "worst": worst,
        "artifacts": dict(subject.artifacts.identities),
        "seconds": round(seconds, 3),
    }


def result_record(
    asked: Asked,
    config: EvaluateConfig,
    checkpoint: Subject,
    checkpoint_items: int,
    figures: dict[str, Interval],
    subjects: list[dict[str, Any]],
    layout: Layout,
) -> dict[str, Any]:
    """The whole file."""
    task = checkpoint.task
    data_set = asked.data_set
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "evaluation",
        "pipeline": layout.pipeline.name,
        "task": task.task,
        "data_set": {
            "name": data_set.name,
            "kind": data_set.kind,
            "source": data_set.source,
            "identity": data_set.identity,
            "items": asked.items,
            "available": data_set.available,
        },
        "settings": {
            "seed": config.seed,
            "bootstrap": config.bootstrap,
            "confidence": CONFIDENCE,
            "new_tokens": checkpoint.new_tokens,
            "prompt": config.prompt,
            "rerank": config.rerank,
            "answers": key_of({"answers": checkpoint.answers}) if checkpoint.answers else None,
            "answer_candidates": checkpoint.candidates,
        },
        "metrics": [
            {"name": name, "title": TITLES[name][0], "range": TITLES[name][1]} for name in figures
        ],
        "checkpoint": {
            "source": task.manifest.checkpoint.source,
            "weights_sha256": task.manifest.checkpoint.weights_sha256,
            "items": checkpoint_items,
            "metrics": {name: _interval(interval) for name, interval in figures.items()},
        },
        "subjects": subjects,
        "tools": tool_versions(
            *("numpy", "onnxruntime", "openvino", "torch", "transformers"),
            *("pillow", "tokenizers", "sacrebleu"),
        ),
    }


def write_result(path: Path, record: dict[str, Any], layout: Layout) -> None:
    """Writes a result; subjects of earlier runs stay where nothing that decides them changed.

    Raises:
        ToolError: the disk is full or the folder cannot be written.
    """
    mine = {_name(subject) for subject in record["subjects"]}
    kept = [s for s in _still_valid(path, record, layout) if _name(s) not in mine]
    record = {**record, "subjects": [*record["subjects"], *kept]}
    write_atomically(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def _still_valid(path: Path, record: dict[str, Any], layout: Layout) -> list[dict[str, Any]]:
    now = _built(layout, record["task"])

    def valid(old: dict[str, Any]) -> list[dict[str, Any]]:
        decides = ("schema_version", "data_set", "settings", "tools")
        if any(old[name] != record[name] for name in decides) or (
            old["checkpoint"]["weights_sha256"] != record["checkpoint"]["weights_sha256"]
        ):
            return []
        return [
            subject
            for subject in old["subjects"]
            if now.get((subject["target"], subject["precision"])) == subject["artifacts"]
        ]

    return stored(path, valid) or []


def _built(layout: Layout, task: Task) -> dict[tuple[str, Precision], dict[str, str]]:
    found: dict[tuple[str, Any], dict[str, str]] = {}
    with runtime_failures():
        for manifest in component_manifests(layout.task(task)):
            built = found.setdefault((manifest.target, manifest.precision), {})
            built[manifest.component] = identity_digest(manifest)
    return found


def _name(subject: dict[str, Any]) -> tuple[str, str, str]:
    return subject["target"], subject["precision"], subject["mode"]


def _compared(found: Comparison) -> dict[str, float | None]:
    return {
        **_interval(found.target),
        "checkpoint": number(found.checkpoint.value),
        "drop": number(found.drop.value),
        "drop_low": number(found.drop.low),
        "drop_high": number(found.drop.high),
    }


def _interval(interval: Interval) -> dict[str, float | None]:
    return {
        "value": number(interval.value),
        "low": number(interval.low),
        "high": number(interval.high),
    }
