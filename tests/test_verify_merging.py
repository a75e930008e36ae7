"""Verdicts join by the digests that they are about: nothing is lost, nothing stale is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from typer.testing import CliRunner

from tests.page_support import COMPONENTS, component_check, token_check
from verify.results import Check
from verify.verdict import read_verdict, sealed
from verify.verdicts.command import merge
from verify.verdicts.junit import junit_text
from verify.verdicts.merging import carried, join, proven_in
from verify.verdicts.step_summary import step_summary

Json = dict[str, Any]
ANSWER = "a red circle"


def checks_of(task: str, target: str, *, good: bool = True) -> list[Json]:
    precision = "f32" if target == "onnx" else "f16"
    error = 1e-4 if good else 1.0
    found = [component_check(task, c, target, precision, error, 5e-3) for c in COMPONENTS[task]]
    return [*found, token_check(task, target, precision, [(ANSWER, ANSWER)])]


def verdict(
    time: str, *sets: tuple[str, str], digests: dict[str, str] | None = None, **more: Any
) -> Json:
    """Of one run over (task, target); ``digests`` of sets that differ from the usual one."""
    key = more.get("key", time)
    good = more.get("good", True)
    checks = [{**c, "run": 0, "key": key} for one in sets for c in checks_of(*one, good=good)]
    named = {
        f"{task} {target} {'f32' if target == 'onnx' else 'f16'}": task for task, target in sets
    }
    described, artifacts = {}, {}
    for name, task in named.items():
        paths = {c: f"{name.replace(' ', '/')}/{c}.manifest.json" for c in COMPONENTS[task]}
        described[name] = {"components": paths, "sha256": (digests or {}).get(name, "same")}
        artifacts |= {path: {"x.bin": "ab"} for path in paths.values()}
    run = {
        "commit": more.get("commit", "c1"),
        "time": time,
        "host": {},
        "tools": {"torch": time[:4]},
    }
    return {
        "passed": all(check["passed"] for check in checks),
        "checks": checks,
        "pipeline": "sample",
        "not_simulated": more.get("not_simulated", []),
        "artifacts": artifacts,
        "sets": described,
        "runs": [run],
    }


DAY_1, DAY_2, DAY_3 = (f"202{n}-01-01T00:00:00+00:00" for n in (1, 2, 3))
CAPTION = (("caption", "onnx"), ("caption", "openvino"))
VQA = (("vqa", "onnx"), ("vqa", "openvino"))


def on_disk(*verdicts: Json) -> dict[str, str]:
    return {n: one["sha256"] for v in verdicts for n, one in v["sets"].items()}


def test_a_narrower_run_keeps_what_is_known_of_the_other_artifacts() -> None:
    before, now = verdict(DAY_1, *CAPTION, *VQA, commit="c1"), verdict(DAY_2, *VQA, commit="c2")
    joined = carried(before, now, on_disk(before))
    assert len(joined["checks"]) == len(before["checks"])
    assert [run["commit"] for run in joined["runs"]] == ["c1", "c2"]
    assert {(c["task"], c["run"]) for c in joined["checks"]} == {("caption", 0), ("vqa", 1)}
    assert proven_in(joined) == set(joined["artifacts"]) == set(before["artifacts"])


def test_a_verdict_of_an_artifact_that_changed_since_is_dropped() -> None:
    before, now = verdict(DAY_1, *CAPTION, *VQA), verdict(DAY_2, *VQA)
    joined = carried(before, now, {**on_disk(before), "caption openvino f16": "other"})
    kept = {(check["task"], check["target"]) for check in joined["checks"]}
    assert kept == {("caption", "onnx"), *VQA}
    assert "caption openvino f16" not in joined["sets"]
    # What was compared with another graph than there is now proves nothing of it either.
    joined = carried(before, now, {**on_disk(before), "caption onnx f32": "other"})
    assert {check["task"] for check in joined["checks"]} == {"vqa"}
    assert carried(before, now, on_disk(now)) == carried(None, now, {})


def test_a_run_that_found_out_nothing_new_leaves_the_verdict_as_it_is() -> None:
    before, now = verdict(DAY_1, *CAPTION, *VQA, commit="c1"), verdict(DAY_2, *VQA, commit="c2")
    joined = carried(before, now, on_disk(before))
    assert carried(joined, verdict(DAY_3, *VQA, commit="c3", key=DAY_2), on_disk(before)) is joined


def test_a_full_simulation_is_not_forgotten_by_a_run_without_it() -> None:
    chip = (("caption", "onnx"), ("caption", "bm1684x"))
    full, usual = (
        verdict(DAY_1, *chip),
        verdict(DAY_2, *chip, not_simulated=["caption bm1684x f16"]),
    )
    usual["checks"] = [c for c in usual["checks"] if c["target"] == "onnx"]
    assert len(proven_in(carried(None, usual, {}))) == 3
    joined = carried(full, usual, on_disk(full))
    assert joined["not_simulated"] == []
    assert len(proven_in(joined)) == 6


def test_a_failure_of_another_artifact_stays_a_failure() -> None:
    before, now = verdict(DAY_1, *CAPTION, good=False), verdict(DAY_2, *VQA)
    joined = carried(before, now, on_disk(before, now))
    assert joined["passed"] is False
    assert proven_in(joined) == set(now["artifacts"])
    again = carried(joined, verdict(DAY_3, *CAPTION), on_disk(before, now))
    assert again["passed"] is True


def test_components_alone_prove_no_artifact() -> None:
    partial = verdict(DAY_1, *CAPTION)
    partial["checks"] = [check for check in partial["checks"] if check["component"]]
    assert proven_in(partial) == set()
    assert proven_in(carried(verdict(DAY_2, *CAPTION), partial, on_disk(partial))) != set()


def files(folder: Path, *verdicts: Json) -> list[str]:
    paths = []
    for index, one in enumerate(verdicts):
        path = folder / f"verify-{index}.json"
        path.write_text(sealed(one))
        paths.append(str(path))
    return paths


def run_merge(*arguments: str) -> tuple[int, str]:
    application = typer.Typer()
    application.command()(merge)
    result = CliRunner().invoke(application, list(arguments))
    return result.exit_code, result.stdout


def test_verdicts_of_several_machines_become_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"vqa openvino f16": "built elsewhere"}
    parts = (
        verdict(DAY_3, *VQA, commit="c3"),
        verdict(DAY_1, *CAPTION, commit="c1"),
        verdict(DAY_2, *VQA, commit="c1", digests=other),
    )
    joined = join(parts)
    assert joined.stale == {"vqa openvino f16": 5}
    assert joined.verdict["sets"]["vqa openvino f16"]["sha256"] == "same"
    out = tmp_path / "verify.json"
    code, _ = run_merge(*files(tmp_path, *parts), "--out", str(out))
    assert code == 0
    whole = read_verdict(out)
    assert {key: whole[key] for key in joined.verdict} == json.loads(json.dumps(joined.verdict))
    assert len(proven_in(whole)) == 14
    assert [run["commit"] for run in whole["runs"]] == ["c1", "c3"]
    # Joined in another order, or joined again, it is the same.
    assert join(parts[::-1]).verdict["sets"] == joined.verdict["sets"]
    again = join([parts[1], whole, parts[0]])
    assert again.stale == {}
    assert len(again.verdict["checks"]) == len(whole["checks"])
    assert capsys.readouterr().err == ""


def test_a_failed_job_fails_the_whole(tmp_path: Path) -> None:
    broken = {"passed": False, "checks": [], "error": "verification did not finish"}
    code, printed = run_merge(
        *files(tmp_path, verdict(DAY_1, *VQA), {**broken, "pipeline": "sample"})
    )
    assert code == 1
    merged = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    assert merged["passed"] is False
    assert merged["error"].endswith("verify-1.json: verification did not finish")
    assert run_merge(*files(tmp_path, verdict(DAY_1, *VQA, good=False)))[0] == 1


@pytest.mark.parametrize("content", ["", "{}", '{"checks": []}', sealed({"checks": [{}]})])
def test_what_is_no_verdict_is_one_line_and_exit_code_2(tmp_path: Path, content: str) -> None:
    path = tmp_path / "verify.json"
    path.write_text(content)
    assert run_merge(str(path))[0] == 2
    assert run_merge(str(tmp_path / "missing.json"))[0] == 2


def test_verdicts_of_other_pipelines_and_versions_are_refused(tmp_path: Path) -> None:
    one, two = verdict(DAY_1, *VQA), {**verdict(DAY_1, *VQA), "pipeline": "another"}
    assert run_merge(*files(tmp_path, one, two))[0] == 2
    old = {key: value for key, value in one.items() if key not in ("sets", "runs")}
    for version, code in ((1, 2), (3, 2)):
        (path,) = files(tmp_path, {**old, "schema_version": version})
        assert run_merge(path)[0] == code


def as_checks(*records: Json) -> list[Check]:
    return [Check.of(record) for record in records]


def test_junit_has_a_case_per_check_and_holds_any_text() -> None:
    bad = component_check("vqa", "text_decoder", "bm1684x", "f16", 0.3, 5e-3)
    bad["problems"] = ["]]> <b> \x00\x1b[31m & \ud800", "second"]
    checks = as_checks(*checks_of("caption", "onnx"), bad)
    root = ElementTree.fromstring(  # noqa: S314 - our own
        junit_text(checks, ["itm bm1688 f16"]).encode("utf-8", "strict")
    )
    assert root.attrib.items() >= {("tests", "6"), ("failures", "1")}
    suites = {suite.get("name"): suite for suite in root}
    assert set(suites) == {"caption onnx f32", "vqa bm1684x f16", "itm bm1688 f16"}
    for suite in suites.values():
        assert suite.get("tests") == str(len(suite.findall("testcase")))
    failure = suites["vqa bm1684x f16"].find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "]]> <b> \ufffd\ufffd[31m & \ufffd"
    assert suites["itm bm1688 f16"].find("testcase/skipped") is not None


def test_step_summary_shows_the_table_and_says_what_is_missing() -> None:
    checks = checks_of("caption", "onnx") + checks_of("caption", "openvino")
    text = step_summary("sample", checks, extent="8 of 64 artifacts verified", not_simulated=["x"])
    assert text.startswith("### sample: verified in part\n\n8 checks passed. 8 of 64 artifacts")
    assert "| OpenVINO IR | f16 | 1 / 1 (1.0e-04) |" in text
    assert "- not simulated: x" in text
    bad = component_check("caption", "text_decoder", "openvino", "f16", 0.3, 5e-3)
    silent = token_check("caption", "openvino", "f16", [("a", "b")])
    silent |= {"samples": 0, "metrics": {}, "problems": ["<script>|tool ended"]}
    text = step_summary("sample", [bad, silent], extent="", not_simulated=[])
    assert text.startswith("### sample: not verified\n\n2 of 2 checks failed.")
    assert r"caption tokens openvino f16: \<script\>\|tool ended" in text
