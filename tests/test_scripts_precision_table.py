"""The accuracy table of docs/quantization.md comes from stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.layout import Layout
from configs.load import load_pipeline
from scripts import precision_table

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "reference-precisions.yaml"


def check(kind: str, **more: Any) -> dict[str, Any]:
    """A record of verify.json about one chip's captions."""
    of = {"target": "bm1684x", "precision": "int8", "task": "caption", "samples": 200}
    return {**of, "kind": kind, "passed": True, **more}


def test_a_row_holds_answers_drop_and_worst_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_table, "_megabytes", lambda *_: 8.25)
    figures = {"value": 0.97, "checkpoint": 0.975, "drop_low": 0.0, "drop_high": 0.015}
    metrics = {"exact_match_rate": 0.995, "quality": {"exact_match": figures}}
    checks = [
        check("component", metrics={"relative_error": 0.01}),
        check("component", metrics={"relative_error": 0.063}),
        check("tokens", metrics=metrics),
    ]
    _, _, row = precision_table.rows(Layout(load_pipeline(CONFIG)), checks)
    for cell in ("199 / 200", "97.5 | 97.0", "0.5 [0.0, 1.5]", "6.3e-02", "8.2", "`int8`"):
        assert cell in row
    (failed,) = precision_table.rows(
        Layout(load_pipeline(CONFIG)), [*checks[:2], {**checks[2], "passed": False}]
    )[2:]
    assert "gate failed" in failed
