"""Stored results: what was done is found again, what was cut off is done again."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.errors import ToolError
from runtime.files.manifests import (
    Checkpoint,
    ComponentManifest,
    FileRecord,
    Net,
    TensorSpec,
)
from runtime.sessions.session import ArrayDict, Session, SessionOptions
from verify.parity.asked_once import AskedOnce
from verify.pipeline import Verification, failure
from verify.results import Check, Store, Subject, passed
from verify.simulator_answers import RememberedSession, forget_others
from verify.verdict import UNFINISHED, VerdictFile, read_verdict, verdict_text

SUBJECT = Subject(
    "onnxruntime_vs_target", "caption", "vision_encoder", "openvino", "f16", "component", "exact"
)
REQUIRED = {
    "gap",
    "task",
    "component",
    "target",
    "precision",
    "kind",
    "samples",
    "metrics",
    "tolerance",
    "passed",
}


def line(**changes: object) -> str:
    return json.dumps({**check("a").record(), **changes})


def check(key: str = "k", **changes: object) -> Check:
    base = Check(SUBJECT, 3, {"max_abs": 0.5}, {"max_relative_error": 1.0}, key=key, seconds=0.25)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_a_passed_check_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "store.jsonl"
    Store(path).add(check("a"))
    again = Store(path).find("a")
    assert again == check("a")
    assert again is not None
    assert again.metrics == {"max_abs": 0.5}
    assert Store(path).find("b") is None


def test_only_a_comparison_that_failed_blames_the_artifact() -> None:
    compared = check(problems=("relative error 0.2 exceeds 1e-2",))
    aborted = check(samples=0, problems=("the simulator aborted (status 6); see a.log",))

    def error(*checks: Check) -> str:
        return str(failure(Verification(checks, (), 1, Path("verify.json"), {}, 0)))

    layer = replace(compared, subject=replace(compared.subject, kind="layers"))
    assert "the artifact is wrong" in error(aborted, layer)
    assert "make bisect says which layer" in error(aborted, compared)
    assert "make bisect" not in error(aborted)
    assert "see a.log" in error(aborted)


def test_a_failed_check_is_not_stored(tmp_path: Path) -> None:
    path = tmp_path / "store.jsonl"
    store = Store(path)
    store.add(check("a", problems=("wrong",)))
    store.add(check("b", samples=0))
    assert Store(path).find("a") is None
    assert Store(path).find("b") is None


def test_a_line_cut_off_by_a_kill_loses_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "store.jsonl"
    store = Store(path)
    store.add(check("a"))
    store.add(check("b"))
    path.write_bytes(path.read_bytes()[:-20])
    again = Store(path)
    assert again.find("a") is not None
    assert again.find("b") is None
    again.add(check("c"))
    assert Store(path).find("a") is not None
    assert Store(path).find("c") is not None


FOREIGN = [
    *("null", "[]", "{}", "7", '{"gap": 1}', "\x00\xff", "not json", "[" * 100_000, "9" * 5000),
    *(line(key=["a"]), line(variant=["exact"]), line(samples="3"), line(problems=[1])),
    *(line(metrics={"relative_error": math.nan}), line(metrics=[]), line(gap="none")),
]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_foreign_lines_are_ignored(tmp_path: Path, foreign: str) -> None:
    path = tmp_path / "store.jsonl"
    path.write_bytes(foreign.encode() + b"\n{\xff}\n")
    assert Store(path).find("a") is None
    store = Store(path)
    store.add(check("a"))
    assert Store(path).find("a") is not None


def test_replaced_results_are_dropped_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "store.jsonl"
    store = Store(path)
    for number in range(9):
        store.add(check(f"key {number}"))
    again = Store(path)
    again.compact()
    assert len(path.read_text().splitlines()) == 1
    assert Store(path).find("key 8") is not None


def test_an_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ToolError, match=r"cannot be (read|written)"):
        Store(blocked / "store.jsonl").add(check("a"))


def test_verdict_has_the_agreed_shape() -> None:
    tokens = replace(SUBJECT, gap="tokens", component=None, kind="tokens", variant="")
    verdict = json.loads(verdict_text([check(), Check(tokens, 10, {}, {})], pipeline="reference"))
    assert verdict["passed"] is True
    assert verdict["pipeline"] == "reference"
    assert len(verdict["checks"]) == 2
    for item in verdict["checks"]:
        assert item.keys() >= REQUIRED
    assert verdict["checks"][1]["component"] is None


def test_nothing_verified_is_not_passed() -> None:
    assert not passed([])
    assert not passed([check(samples=0)])
    assert not passed([check(), check(problems=("wrong",))])
    assert passed([check()])
    (item,) = json.loads(verdict_text([check(samples=0)]))["checks"]
    assert item["passed"] is False
    assert item["problems"] == ["nothing was compared"]


@pytest.fixture
def verdict(tmp_path: Path) -> Path:
    path = tmp_path / "verify.json"
    path.write_text(verdict_text([check()]))
    assert read_verdict(path)["passed"] is True
    return path


def said(path: Path) -> object:
    return read_verdict(path).get("error")


def test_a_verdict_does_not_outlive_a_run_that_ends_early(verdict: Path) -> None:
    last = read_verdict(verdict)
    file = VerdictFile(verdict)
    file.begin()
    assert said(verdict) == UNFINISHED
    file.fail("a graph is damaged")
    assert said(verdict) == "a graph is damaged"
    assert read_verdict(verdict)["passed"] is False
    # What was known before is not lost: the next run that ends gets it.
    for _ in range(2):
        VerdictFile(verdict).begin()
        assert said(verdict) == UNFINISHED
    seen = []
    file.finish(lambda before: seen.append(before) or plain(check("another")))
    assert seen == [last]
    assert [path.name for path in verdict.parent.iterdir()] == ["verify.json"]


def plain(*checks: Check) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(verdict_text(checks))
    del data["sha256"]
    return data


def test_a_verdict_that_says_the_same_stays_the_same_file(verdict: Path) -> None:
    os.utime(verdict, (1, 1))
    file = VerdictFile(verdict)
    file.begin()
    file.finish(lambda before: dict(before or {}))
    assert verdict.stat().st_mtime == 1
    file.begin()
    file.finish(lambda _: plain(check("another")))
    assert read_verdict(verdict)["checks"][0]["key"] == "another"
    assert [path.name for path in verdict.parent.iterdir()] == ["verify.json"]


def test_no_verdict_says_that_a_first_run_failed(tmp_path: Path) -> None:
    file = VerdictFile(tmp_path / "verify.json")
    file.begin()
    file.fail("nothing is there")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("old", "new"), [("0.5", "0.0"), ('"samples": 3', '"samples": 30')])
def test_a_forged_verdict_is_noticed_and_replaced(verdict: Path, old: str, new: str) -> None:
    assert old in verdict.read_text()
    verdict.write_text(verdict.read_text().replace(old, new))
    with pytest.raises(ValueError, match="changed after it was written"):
        read_verdict(verdict)
    file = VerdictFile(verdict)
    file.begin()
    seen = []
    file.finish(lambda before: seen.append(before) or plain(check()))
    assert seen == [None]
    assert read_verdict(verdict)["passed"] is True


class Doubling(Session):
    """Doubles its input, and counts how often it really runs."""

    runs = 0

    def _load(self) -> None:
        """Nothing to load."""

    def _unload(self) -> None:
        """Nothing to release."""

    def _execute(self, net: Net, arrays: list[np.ndarray]) -> list[np.ndarray]:  # noqa: ARG002
        type(self).runs += 1
        return [arrays[0] * 2]


def doubling(sha256: str = "0" * 64) -> Doubling:
    value = TensorSpec("x", "x", (1, "n"), "float32")
    manifest = ComponentManifest(
        path=Path("x.manifest.json"),
        pipeline="p",
        task="caption",
        component="vision_encoder",
        target="bm1688",
        precision="f16",
        nets=(Net("main", "x", (value,), (replace(value, name="y"),)),),
        files={"missing.bmodel": FileRecord(sha256, 1)},
        key="",
        key_inputs={},
        tools={},
        checkpoint=Checkpoint("", None, "", ""),
    )
    session = Doubling(manifest, SessionOptions(verify_digest=False))
    session._loaded = True
    return session


def answer(folder: Path, feeds: ArrayDict, *, sha256: str = "0" * 64, version: str = "1") -> float:
    session = RememberedSession(doubling(sha256), folder, version)
    return float(session.run(feeds)["y"].sum())


def test_simulated_answers_are_computed_once(tmp_path: Path) -> None:
    Doubling.runs = 0
    one = {"x": np.array([[1.0, 2.0]], dtype=np.float32)}
    two = {"x": np.array([[1.0, 3.0]], dtype=np.float32)}
    assert answer(tmp_path, one) == answer(tmp_path, one) == 6.0
    assert Doubling.runs == 1
    assert answer(tmp_path, two) == 8.0
    assert Doubling.runs == 2


def test_a_graph_is_asked_once_and_the_latest_answers_are_kept() -> None:
    Doubling.runs = 0
    session = AskedOnce(doubling(), most_bytes=3 * 400)

    def ask(factor: int, count: int = 100) -> int:
        x = np.full((1, count), factor, dtype=np.float32)
        outputs = session.run({"x": x, "not taken": np.array(Doubling.runs)})
        np.testing.assert_array_equal(outputs["y"], 2 * x)
        return Doubling.runs

    assert [ask(factor) for factor in (1, 2, 1, 2)] == [1, 2, 2, 2]
    # Of four, the one that was asked for longest ago goes.
    assert [ask(factor) for factor in (3, 4, 2, 1)] == [3, 4, 4, 5]
    # What is larger than all that may be kept is not kept.
    assert [ask(1, 1000), ask(1, 1000)] == [6, 7]


def test_another_artifact_or_simulator_is_asked_again(tmp_path: Path) -> None:
    Doubling.runs = 0
    feeds = {"x": np.array([[1.0, 2.0]], dtype=np.float32)}
    answer(tmp_path, feeds)
    answer(tmp_path, feeds, sha256="1" * 64)
    answer(tmp_path, feeds, version="2")
    assert Doubling.runs == 3


def test_a_damaged_stored_answer_is_computed_again(tmp_path: Path) -> None:
    Doubling.runs = 0
    feeds = {"x": np.array([[1.0, 2.0]], dtype=np.float32)}
    answer(tmp_path, feeds)
    (stored,) = tmp_path.rglob("*.npz")
    stored.write_bytes(stored.read_bytes()[:40])
    assert answer(tmp_path, feeds) == 6.0
    assert Doubling.runs == 2


def test_answers_of_former_artifacts_are_deleted(tmp_path: Path) -> None:
    feeds = {"x": np.array([[1.0, 2.0]], dtype=np.float32)}
    answer(tmp_path, feeds)
    answer(tmp_path, feeds, version="2")
    kept, _ = sorted(path.name for path in tmp_path.iterdir())
    forget_others(tmp_path, {kept})
    assert [path.name for path in tmp_path.iterdir()] == [kept]
    forget_others(tmp_path / "absent", set())
