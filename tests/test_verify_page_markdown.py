"""The tables of README and docs/chip-accuracy.md come from stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.errors import InputError
from configs.layout import Layout
from configs.load import load_pipeline
from tests.conftest import ROOT
from verify.page import markdown as tables

PRECISIONS = load_pipeline(ROOT / "configs" / "reference-precisions.yaml")
REFERENCE = load_pipeline(ROOT / "configs" / "reference.yaml")
QUALITY = {"exact_match": {"value": 0.97, "checkpoint": 0.975, "drop_low": 0.0, "drop_high": 0.015}}
ANSWERS = {"exact_match_rate": 0.995, "quality": QUALITY}


def check(kind: str, **more: Any) -> dict[str, Any]:
    """A record of verify.json about one chip's captions."""
    of = {"target": "bm1684x", "precision": "int8", "task": "caption", "samples": 200}
    return {**of, "kind": kind, "gap": "onnxruntime_vs_target", "passed": True, **more}


def component(error: float, **more: Any) -> dict[str, Any]:
    return check("component", metrics={"relative_error": error}, **more)


CHECKS = [
    component(0.01),
    component(0.063),
    component(0.9, gap="checkpoint_vs_onnx"),
    component(0.9, precision="f16"),
    check("tokens", metrics=ANSWERS),
    check("tokens", task="vqa", metrics={**ANSWERS, "exact_match_rate": 1.0}),
]


def test_a_row_of_fidelity_holds_answers_and_worst_error_of_every_task() -> None:
    variant = {"target": "openvino", "variant": "fast", "metrics": {"decision_match_rate": 0.98}}
    checks = [*CHECKS, check("scores", **variant, passed=False)]
    assert tables.fidelity(checks) == [
        "| artifact | precision | caption | question answering |",
        "|---|---|---|---|",
        "| BModel BM1684X | int8 | 199 / 200 (6.3e-02) | 200 / 200 |",
        "| OpenVINO IR | int8, fast | 196 / 200 (gate failed) | - |",
    ]


def test_a_row_of_accuracy_holds_answers_drop_and_worst_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tables, "_megabytes", lambda *_: 8.25)

    def row(passed: bool) -> str:
        checks = [*CHECKS[:4], {**CHECKS[4], "passed": passed}]
        _, _, found = tables.accuracy(Layout(PRECISIONS), ["bm1684x"], checks)
        return found

    cells = "199 / 200 | 97.5 | 97.0 | 0.5 [0.0, 1.5] | 6.3e-02 | 8.2"
    assert row(True) == f"| BM1684X | `int8` | caption | {cells} |"
    assert "97.0 (gate failed)" in row(False)


def test_only_chips_in_several_sets_have_the_second_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tables, "_megabytes", lambda *_: 8.25)
    monkeypatch.setattr(Layout, "verdict", tmp_path / "verify.json")
    with pytest.raises(InputError, match="no verdict"):
        tables.markdown(REFERENCE)
    monkeypatch.setattr(tables, "read_verdict", lambda _: {"checks": CHECKS[:5]})
    assert "BM1684X" in tables.markdown(REFERENCE)
    assert "drop in points" not in tables.markdown(REFERENCE)
    assert "drop in points" in tables.markdown(PRECISIONS)
