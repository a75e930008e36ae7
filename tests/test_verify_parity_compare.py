"""Comparisons and tolerances: what counts as equal, and what proves nothing."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from configs.errors import ConfigError
from configs.load import load_target, target_names
from configs.precisions import PRECISIONS, Arithmetic
from configs.schema import Component
from configs.tolerances import (
    TOLERANCES_FILE,
    Applies,
    Tolerance,
    Tolerances,
    load_tolerances,
    source,
)
from verify.parity.compare import compare, cosine, faults, needed, same_for_every_case, summary

TIGHT = Tolerance(
    name="tight", max_relative_error=1e-4, min_cosine=0.9999999, reason="for these tests"
)


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def problems(reference: np.ndarray, actual: np.ndarray, **options: object) -> list[str]:
    return faults(compare("out", "case", reference, actual, **options), TIGHT)  # type: ignore[arg-type]


def test_equal_arrays_pass_with_exact_figures() -> None:
    reference = values(2, 3, 4)
    result = compare("out", "case", reference, reference.copy())
    assert faults(result, TIGHT) == []
    assert (result.max_abs, result.relative_error) == (0.0, 0.0)
    assert result.cosine == pytest.approx(1.0)
    assert result.scale == pytest.approx(float(np.abs(reference).max()))
    assert result.elements == 24


def test_error_is_relative_to_the_largest_reference_value() -> None:
    reference = np.array([[0.0, 10.0, -200.0]], dtype=np.float32)
    result = compare("out", "case", reference, reference + np.float32(0.5))
    assert result.max_abs == pytest.approx(0.5)
    assert result.relative_error == pytest.approx(0.5 / 200)


def test_a_difference_beyond_the_tolerance_fails_and_is_named() -> None:
    reference = values(4, 4)
    actual = reference.copy()
    actual[2, 1] += 1e-2
    (problem, *_) = problems(reference, actual)
    assert "relative error" in problem
    assert "1.0e-04" in problem


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["actual", "reference", "both"])
def test_non_finite_fails_on_either_side_and_on_both(bad: float, where: str) -> None:
    reference, actual = values(3, 3), values(3, 3)
    if where in ("reference", "both"):
        reference[0, 0] = bad
    if where in ("actual", "both"):
        actual[0, 0] = bad
    assert any("finite" in problem for problem in problems(reference, actual))


def test_non_finite_in_padding_fails_although_padding_is_not_compared() -> None:
    reference, actual = values(1, 4, 2), values(1, 4, 2)
    actual[0, 3, 0] = np.nan
    assert any("finite" in p for p in problems(reference, actual, rows=slice(0, 2)))


def test_padding_is_not_compared() -> None:
    reference, actual = values(1, 4, 2), values(1, 4, 2)
    actual[0, 2:] += 5
    assert problems(reference, actual, rows=slice(0, 2)) == []
    assert problems(reference, actual) != []


def test_shape_and_dtype_must_match() -> None:
    assert any("shape" in p for p in problems(values(2, 3), values(3, 2)))
    # Broadcasting must not hide a missing axis.
    assert any("shape" in p for p in problems(values(1, 3), values(1, 3)[0]))
    wide = values(2, 2).astype(np.float64)
    assert any("dtype" in p for p in problems(values(2, 2), wide, dtype="float32"))


@pytest.mark.parametrize("constant", [0.0, 3.0, -1e-30])
def test_constant_references_prove_nothing(constant: float) -> None:
    reference = np.full((3, 5), constant, dtype=np.float32)
    assert any("proves nothing" in p for p in problems(reference, reference.copy()))


def test_nothing_compared_fails() -> None:
    empty = np.zeros((1, 0, 4), dtype=np.float32)
    assert any("nothing to compare" in p for p in problems(empty, empty.copy()))
    some = values(1, 3, 4)
    assert any("nothing" in p for p in problems(some, some.copy(), rows=slice(3, 3)))


def test_zero_answer_to_a_real_reference_fails_on_both_figures() -> None:
    found = problems(values(4, 4), np.zeros((4, 4), dtype=np.float32))
    assert any("relative error" in p for p in found)
    assert any("cosine" in p for p in found)


def test_output_that_ignores_its_input_is_noticed() -> None:
    one, other = values(2, 2), values(2, 2)
    assert same_for_every_case([one, other])
    assert not same_for_every_case([one, other + 1])
    assert not same_for_every_case([one])
    assert not same_for_every_case([one, values(3, 2)])


def test_summary_takes_the_worst_and_has_no_nan() -> None:
    reference = values(3, 3)
    good = compare("out", "a", reference, reference.copy())
    off = compare("out", "b", reference, reference + np.float32(0.1))
    broken = compare("out", "c", reference, np.full((3, 3), np.nan, dtype=np.float32))
    worst = summary([good, off])
    assert worst["max_abs"] == pytest.approx(0.1, rel=1e-5)
    assert worst["cosine"] == pytest.approx(off.cosine)
    assert summary([good, broken])["max_abs"] is None
    assert summary([good, broken])["finite"] is False


def test_needed_tolerance_would_pass_and_little_less_would_not() -> None:
    reference = values(8, 8)
    result = compare("out", "case", reference, reference + np.float32(0.0123))
    enough = needed([result])
    limit, least = enough["max_relative_error"], enough["min_cosine"]
    assert limit is not None
    assert least is not None
    assert faults(result, TIGHT.model_copy(update={**enough})) == []
    assert limit / 1.2 < result.relative_error <= limit
    assert least <= result.cosine


def test_pooled_cosine() -> None:
    a, b = values(1, 2), values(1, 2) * 3
    assert cosine([(a, a), (b, b)]) == pytest.approx(1.0)
    assert cosine([(a, -a)]) == pytest.approx(-1.0)
    assert math.isnan(cosine([(a, a * 0)]))


def test_shipped_table_gives_every_row_a_reason_and_a_source() -> None:
    table = load_tolerances()
    for row in (*table.components, *table.scores, *table.answers):
        assert len(row.reason) > 20
        assert source(row).startswith("configs/tolerances.yaml: ")


def test_gap_one_is_held_to_the_required_bound() -> None:
    row = load_tolerances().component(
        gap="hf_vs_wrapper",
        target="onnx",
        precision="f32",
        arithmetic="f32",
        component="text_decoder",
    )
    assert row.max_relative_error <= 1e-4


@pytest.mark.parametrize(
    ("target", "precision", "arithmetic", "expected"),
    [
        ("openvino", "f16", "bf16", "openvino_bf16"),
        ("openvino", "f16", "f32", "openvino_f32_f16_weights"),
        ("openvino", "f32", "f32", "openvino_f32"),
        ("bm1684", "f32", "f32", "chip_f32"),
        ("bm1688", "f32", "f32", "chip_f32_exact"),
        ("bm1684x", "f16", "f16", "chip_f16"),
        ("bm1684x", "w8f16", "f16", "chip_w8"),
        ("bm1688", "w4bf16", "bf16", "chip_w4"),
        ("bm1688", "bf16", "bf16", "chip_bf16"),
    ],
)
def test_rows_are_found_by_what_the_device_computes_in(
    target: str, precision: str, arithmetic: str, expected: str
) -> None:
    row = load_tolerances().component(
        gap="onnxruntime_vs_target",
        target=target,
        precision=precision,  # type: ignore[arg-type]
        arithmetic=arithmetic,  # type: ignore[arg-type]
        component="vision_encoder",
    )
    assert row.name == expected


def test_rougher_arithmetic_never_gets_a_tighter_bound() -> None:
    rows = {row.name: row for row in load_tolerances().components}
    assert rows["chip_f32"].max_relative_error < rows["chip_f16"].max_relative_error
    assert rows["chip_f16"].max_relative_error < rows["chip_bf16"].max_relative_error


def test_a_gate_that_a_pipeline_file_leaves_out_goes_by_arithmetic() -> None:
    table = load_tolerances()
    found = [
        table.gate(target=target, precision=precision, arithmetic=arithmetic)  # type: ignore[arg-type]
        for target, precision, arithmetic in (
            ("onnx", "f32", "f32"),
            ("openvino", "f16", "f32"),
            ("openvino", "f16", "bf16"),
            ("bm1688", "w4bf16", "bf16"),
        )
    ]
    assert [gate.min_agreement for gate in found] == [1.0, 0.995, 0.99, 0.99]
    assert all("answers." in gate.source for gate in found)


def test_every_case_of_every_target_has_one_row_whatever_the_order(tmp_path: Path) -> None:
    data = yaml.safe_load(TOLERANCES_FILE.read_text())
    turned = tmp_path / "tolerances.yaml"
    turned.write_text(yaml.safe_dump({key: rows[::-1] for key, rows in data.items()}))
    assert names(load_tolerances(turned)) == names(load_tolerances())


def names(table: Tolerances) -> list[str]:
    """The row of every component, score, answer and layer that a target may be asked for."""
    found: list[str] = []
    for name in target_names():
        target = load_target(name)
        for precision in target.precisions:
            arithmetics: tuple[Arithmetic, ...] = ("f32", "f16", "bf16")
            if target.backend == "sophon":
                arithmetics = (PRECISIONS[precision].arithmetic,)
            for computed in arithmetics:
                place: Any = {"target": name, "precision": precision, "arithmetic": computed}
                found += [table.score(**place).name, table.gate(**place).source]
                for part in get_args(Component):
                    if PRECISIONS[precision].built_by(target.backend):
                        of: Any = {**place, "component": part}
                        found.append(table.component(gap="onnxruntime_vs_target", **of).name)
                        found.append(table.layer(gap="target_layers", **of).name)
    assert len(found) > 300
    return found


def test_no_row_names_a_target() -> None:
    text = TOLERANCES_FILE.read_text()
    assert not [name for name in target_names() if re.search(rf"\[[^]]*\b{name}_", text)]
    with pytest.raises(ValidationError):
        Applies.model_validate({"targets": ["bm1688"]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_relative_error: 1.0e-4", "max_relative_error: -1"),
        ("name: onnxruntime", "name: wrapper"),
        ("arithmetic: [bf16]}", "arithmetics: [bf16]}"),
        # Two rows of three keys that both apply.
        ("weights: [f16], arithmetic: [f16]}", "arithmetic: [f16], float32: [exact]}"),
        # A wide bound that does not say what decides.
        ("    decided_by: answers\n", ""),
        ("  - name: batch_scores", "  - name: batch_score"),
        ("reason: float32 end to end; chips take exp and erf from tables", "reason: ''"),
    ],
)
def test_a_broken_table_is_refused_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    original = TOLERANCES_FILE.read_text()
    assert text in original
    path = tmp_path / "tolerances.yaml"
    path.write_text(original.replace(text, expected, 1))
    with pytest.raises(ConfigError, match=r"tolerances\.yaml: .*(components|scores|limits)"):
        load_tolerances(path)
