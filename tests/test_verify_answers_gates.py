"""Quality gates of ``make verify``: what the pipeline file says, and what the answers lose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import ConfigError
from configs.load import load_pipeline, load_target
from configs.schema import QualityGate, Task
from configs.tolerances import Gate
from pipeline.command import select
from verify.answers.cases import Case, generation_cases
from verify.answers.quality import (
    NamedGate,
    asked_agreement,
    match_quality,
    text_quality,
    usual_agreement,
    with_quality,
)
from verify.artifacts import TargetArtifacts, find_artifacts
from verify.plan import make_plan
from verify.results import Check, Subject

ROOT = Path(__file__).resolve().parent.parent


def with_gates(tmp_path: Path, gates: dict[str, Any]) -> Path:
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data["verify"]["gates"] = gates
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.parametrize(
    ("gates", "what"),
    [
        ({"caption": {"f12": {"min_agreement": 1}}}, "gates.caption.f12"),
        ({"caption": {"openvino.f16.slow": {"min_agreement": 1}}}, "exact or fast"),
        ({"vqa": {"f16": {"max_drop": {"cider": 0.1}}}}, "not a metric of vqa"),
        ({"vqa": {"f16": {}}}, "empty gate"),
        ({"vqa": {"f16": {"min_agreement": 1.1}}}, "verify.gates.vqa.f16.min_agreement"),
        ({"itm": {"bm9.f16": {"min_agreement": 1}}}, "unknown target bm9"),
        ({"itm": {"f16": {"max_drop": {"auc": -0.1}}}}, "verify.gates.itm.f16.max_drop.auc"),
    ],
)
def test_gates_that_make_no_sense_are_refused(
    tmp_path: Path, gates: dict[str, Any], what: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load_pipeline(with_gates(tmp_path, gates))
    assert what in str(raised.value)
    assert "pipeline.yaml" in str(raised.value)


@pytest.mark.parametrize("name", ["reference"])
def test_the_shipped_gates_cover_every_target(name: str) -> None:
    pipeline = load_pipeline(ROOT / "configs" / f"{name}.yaml")
    for task in pipeline.tasks:
        for target, selection in pipeline.targets.items():
            for precision in selection.precisions:
                gates = pipeline.verify.gates[task]
                assert {precision, f"{target}.{precision}"} & set(gates)


def cases(task: Task, count: int = 20) -> list[Case]:
    return generation_cases(task, count, seed=0)


def gate(**drops: float) -> NamedGate:
    return NamedGate(QualityGate(max_drop=drops), "file: verify.gates")


def test_right_captions_lose_nothing() -> None:
    right = [str(case.truth) for case in cases("caption")]
    kept = gate(cider=0.0, bleu_4=0.0, exact_match=0.0)
    found = text_quality(cases("caption"), right, right, kept)
    assert found.problems == ()
    same = {"value": 1.0, "checkpoint": 1.0, "drop_low": 0.0, "drop_high": 0.0}
    assert found.metrics["exact_match"] == same
    assert found.metrics["cider"]["value"] > 9.0


@pytest.mark.parametrize("task", ["caption", "vqa"])
def test_one_wrong_answer_in_twenty_costs_what_it_costs(task: Task) -> None:
    right = [str(case.truth) for case in cases(task)]
    wrong = ["nothing of the kind", *right[1:]]
    for limit, problems in ((0.05, 0), (0.0499, 1)):
        found = text_quality(cases(task), right, wrong, gate(exact_match=limit))
        assert len(found.problems) == problems
        assert found.metrics["exact_match"]["value"] == pytest.approx(0.95)


def test_matching_is_judged_by_accuracy_and_ranking() -> None:
    some = cases("itm")
    right = [0.9 if case.truth else 0.1 for case in some]
    turned = [1.0 - score for score in right]
    assert match_quality(some, right, right, gate(auc=0.0, accuracy=0.0)).problems == ()
    assert len(match_quality(some, right, turned, gate(auc=0.5, accuracy=0.5)).problems) == 2
    # A score that is not a number has no rank: the gate is not kept.
    broken = [float("nan"), *right[1:]]
    assert "auc" in " ".join(match_quality(some, right, broken, gate(auc=0.5)).problems)


def test_a_gate_that_is_not_kept_fails_the_check() -> None:
    subject = Subject("tokens", "vqa", None, "openvino", "f16", "tokens", "exact")
    check = Check(subject, 20, {"exact_match_rate": 0.95}, {})
    right = [str(case.truth) for case in cases("vqa")]
    assert with_quality(
        check, text_quality(cases("vqa"), right, right, gate(soft_accuracy=0))
    ).passed
    failed = with_quality(
        check, text_quality(cases("vqa"), right, ["x", *right[1:]], gate(soft_accuracy=0))
    )
    assert not failed.passed
    assert "soft_accuracy drops by 0.05" in failed.problems[0]
    record = Check.of(failed.record())
    assert record.metrics["quality"]["soft_accuracy"]["checkpoint"] == 1.0


def test_verify_plans_the_gate_of_each_target(exported_artifacts: Path, tmp_path: Path) -> None:
    assert exported_artifacts
    loose, strict = {"f32": {"min_agreement": 0.5}}, {"onnx.f32": {"min_agreement": 0.9}}

    def planned(gates: dict[str, Any]) -> tuple[NamedGate | None, str]:
        config = with_gates(tmp_path, {"vqa": gates})
        selection = replace(select(config, task="vqa"), targets=())
        plan = make_plan(selection, find_artifacts(selection), config, full=False)
        (check,) = [c for c in plan.checks if c.subject.gap == "tokens"]
        return check.quality, check.key

    found, key = planned({**loose, **strict})
    assert found is not None
    assert found.gate.min_agreement == 0.9
    assert found.source.endswith("verify.gates.vqa.onnx.f32")
    # A check that passed under another gate is judged again.
    assert planned(loose)[1] != key
    assert planned({"bm1688.f32": {"min_agreement": 0.9}})[0] is None


@pytest.mark.parametrize(
    ("gates", "mode", "expected"),
    [
        # What a user writes is never lowered, also where the table has less for that arithmetic.
        ({"f16": {"min_agreement": 1.0}}, "fast", (1.0, "verify.gates.vqa.f16")),
        (
            {"f16": {"min_agreement": 1.0}, "openvino.f16.fast": {"min_agreement": 0.5}},
            "fast",
            (0.5, "verify.gates.vqa.openvino.f16.fast"),
        ),
        (
            {"f16": {"min_agreement": 1.0}, "openvino.f16.fast": {"min_agreement": 0.5}},
            "exact",
            (1.0, "verify.gates.vqa.f16"),
        ),
        # A more specific gate that says nothing of agreement leaves that to the next.
        (
            {"f16": {"min_agreement": 0.9}, "openvino.f16": {"max_drop": {"exact_match": 0.1}}},
            "exact",
            (0.9, "verify.gates.vqa.f16"),
        ),
    ],
)
def test_the_most_specific_share_of_equal_answers_is_asked_for(
    tmp_path: Path, gates: dict[str, Any], mode: str, expected: tuple[float, str]
) -> None:
    pipeline = load_pipeline(with_gates(tmp_path, {"vqa": gates}))
    artifacts = TargetArtifacts(load_target("openvino"), "f16", {})
    found = asked_agreement(pipeline, "vqa", artifacts, mode, "file")
    assert found == Gate(expected[0], f"file: {expected[1]}")
    assert asked_agreement(pipeline, "itm", artifacts, mode, "file") is None


def test_answers_have_a_gate_where_a_pipeline_file_says_nothing() -> None:
    chip = TargetArtifacts(load_target("bm1684"), "f32", {})
    found = usual_agreement(chip, "")
    assert found == Gate(1.0, "configs/tolerances.yaml: answers.float32")
