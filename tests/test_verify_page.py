"""The report's content: what stands on the page for every kind of pipeline, and what never does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import html5lib
import pytest

from configs.errors import InputError
from configs.load import load_pipeline
from tests.conftest import run_stage
from tests.page_support import HOSTILE, Pipeline, component_check, token_check, write_json
from verify.page.checks import figures, rows, tightest
from verify.page.figures import LogAxis, exponent, file_size, times
from verify.page.page import Written, write_report

REFERENCES = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "background"}


def report(pipeline: Pipeline, *, force: bool = False) -> Written:
    return write_report(load_pipeline(pipeline.config), pipeline.config, force=force)


def parsed(page: Path) -> html5lib.treebuilders.etree.Element:
    """The page's tree; html5lib raises on anything that is not valid HTML syntax."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return parser.parse(page.read_text(encoding="utf-8"))


def text_of(page: Path) -> str:
    body = parsed(page).find("body")
    return " ".join(" ".join(body.itertext()).split())


def check_self_contained(page: Path) -> None:
    """Valid, unique ids, internal links that resolve, and nothing from elsewhere."""
    tree = parsed(page)
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in tree.iter():
        for name in REFERENCES & set(element.attrib):
            reference = element.get(name)
            assert reference.startswith(("#", "data:")), reference
            assert not reference.startswith("#") or reference[1:] in ids, reference
        style = "".join(element.itertext()) if element.tag == "style" else element.get("style", "")
        assert not re.search(r"url\(|@import", style)
        tag = str(element.tag).rpartition("}")[2]
        assert tag not in ("script", "iframe", "object", "embed", "base", "form", "foreignObject")
        assert tag != "link" or element.get("href") == "data:,"
        assert not [name for name in element.attrib if str(name).startswith("on")]
        if element.tag == "img":
            assert element.get("alt")
    headings = [int(e.tag[1]) for e in tree.iter() if re.fullmatch("h[1-6]", str(e.tag))]
    assert headings[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(headings))


@pytest.fixture
def whole(tmp_path: Path) -> Pipeline:
    """Three tasks, four targets, everything passed, an evaluation."""
    chips = {"bm1684": ["f32"], "bm1684x": ["f16", "bf16"]}
    pipeline = Pipeline(
        tmp_path, tasks=("caption", "vqa", "itm"), targets={"openvino": ["f16"], **chips}
    )
    pipeline.build()
    pipeline.verdict(pipeline.passing_checks())
    pipeline.evaluation()
    return pipeline


def test_a_whole_pipeline(whole: Pipeline) -> None:
    written = report(whole)
    assert written.state == "passed"
    assert written.size_bytes < 5_000_000
    check_self_contained(whole.page)
    text = text_of(whole.page)
    assert "Verified All 70 checks passed. The least margin is" in text
    assert "Failures" not in text
    for words in (
        "BM1684X bf16",
        "OpenVINO f16",
        "2.0e-4",
        "CIDEr",
        "0.500 ms",
        "MatMul2FAttention",
    ):
        assert words in text
    assert "first token that differs, 3 answers" in text


def test_second_run_writes_nothing_and_a_changed_input_does(whole: Pipeline) -> None:
    assert not report(whole).unchanged
    before = whole.page.stat().st_mtime_ns
    assert report(whole).unchanged
    assert whole.page.stat().st_mtime_ns == before
    whole.evaluation("vqa-scenes")
    assert not report(whole).unchanged
    assert report(whole, force=True).unchanged is False


def test_the_same_input_gives_the_same_page(whole: Pipeline) -> None:
    report(whole)
    first = whole.page.read_bytes()
    report(whole, force=True)
    assert whole.page.read_bytes() == first


def test_failures_come_first_and_are_marked_by_word_and_shape(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.build()
    bad = component_check("caption", "text_decoder", "openvino", "f16", 0.3, 5e-3)
    wrong = token_check("caption", "openvino", "f16", [("a red ring", "a blue ring")] * 4)
    good = component_check("caption", "vision_encoder", "openvino", "f16", 1e-4, 5e-3)
    pipeline.verdict([good, bad, wrong])
    written = report(pipeline)
    assert written.state == "failed"
    check_self_contained(pipeline.page)
    text = text_of(pipeline.page)
    assert "Not verified 2 of 3 checks failed." in text
    assert text.index("output x: relative error 3.0e-01 exceeds 5.0e-03") < text.rindex(
        "Which one to ship"
    )
    assert "“a blue ring” instead of “a red ring”, from token 2 on" in text
    assert "≠ a blue ring" in text
    failures = [e for e in parsed(pipeline.page).iter("tr") if e.get("class") == "failed"]
    assert failures
    assert all("failed" in "".join(row.itertext()) for row in failures)


def test_check_without_figures_is_still_shown(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.build()
    broken = component_check("caption", "text_decoder", "openvino", "f16", 1.0, 0.1)
    broken |= {"metrics": {}, "tolerance": {}, "samples": 0, "problems": ["simulator ended (9)"]}
    silent = token_check("caption", "openvino", "f16", [("a", "b")])
    silent |= {"metrics": {"exact_match_rate": None}, "tolerance": {}}
    nothing = component_check("caption", "vision_encoder", "openvino", "f16", 1.0, 0.1)
    nothing["metrics"] = {"relative_error": None, "cosine": None}
    pipeline.verdict([broken, silent, nothing])
    assert report(pipeline).state == "failed"
    check_self_contained(pipeline.page)
    assert "simulator ended (9)" in text_of(pipeline.page)


def test_only_onnx_built_and_verified(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.build(("onnx", "f32"))
    pipeline.verdict([c for c in pipeline.passing_checks() if c["target"] == "onnx"])
    assert report(pipeline).state == "passed"
    check_self_contained(pipeline.page)


def test_unfinished_verification_is_not_called_verified(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.build()
    pipeline.verdict([], error="verification did not finish; run it again")
    assert report(pipeline).state == "failed"
    check_self_contained(pipeline.page)
    assert "Not verified verification did not finish; run it again" in text_of(pipeline.page)


def test_artifact_changed_after_its_verification_is_not_called_verified(whole: Pipeline) -> None:
    whole.build(("openvino", "f16"), files={"x.bin": {"sha256": "00" * 32, "size_bytes": 5}})
    assert report(whole).state == "incomplete"
    text = text_of(whole.page)
    assert re.search(r"\b(\d+) of \d+ artifacts verified", text)
    assert "Rebuilt or removed after it was verified: " in text


def test_vanished_artifact_is_noticed(whole: Pipeline) -> None:
    next(whole.folder.glob("caption/bm1684/f32/*.manifest.json")).unlink()
    assert report(whole).state == "incomplete"


def test_what_was_built_but_not_covered_is_listed(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, targets={"openvino": ["f16"], "bm1684x": ["f16"]})
    pipeline.build()
    covered = [c for c in pipeline.passing_checks() if c["target"] != "bm1684x"]
    every = dict(pipeline.artifacts)
    pipeline.artifacts = {path: v for path, v in every.items() if "bm1684x" not in path}
    pipeline.verdict(covered)
    assert report(pipeline).state == "incomplete"
    text = text_of(pipeline.page)
    assert f"{len(pipeline.artifacts)} of {len(every)} artifacts verified All" in text
    assert "Targets ONNX, OpenVINO Artifacts 6 of 9" in text
    assert "not part of this verdict: caption bm1684x f16" in text
    assert "not checked" in text
    pipeline.artifacts = every
    pipeline.verdict(covered, not_simulated=["caption bm1684x f16"])
    assert report(pipeline).state == "incomplete"
    text = text_of(pipeline.page)
    assert "6 of 9 artifacts verified" in text
    assert "Not simulated: caption bm1684x f16" in text
    assert "not part of this verdict" not in text


def test_lost_gate_of_an_evaluation_is_a_failure(whole: Pipeline) -> None:
    path = whole.evaluation()
    data = json.loads(path.read_text())
    data["subjects"][0]["gates"][0] |= {"value": 0.9, "passed": False}
    write_json(path, data)
    assert report(whole).state == "failed"
    assert "agreement 0.9, at least 0.98" in text_of(whole.page)


def test_error_per_layer_names_the_worst_and_unfolds_it(whole: Pipeline) -> None:
    whole.bisection([1e-5, 2e-2, None, 0.0])
    report(whole)
    check_self_contained(whole.page)
    text = text_of(whole.page)
    assert "target: text_decoder layers.1: drifts" in text
    assert "2 of 4 layers beyond 1.0e-3" in text
    assert "layers.2/feed_forward/outer/Add Add not finite not finite beyond" in text
    assert "Suggested float islands: /layers.1/Add, /layers.2/Add" in text
    details = [e for e in parsed(whole.page).iter("details") if e.get("open") is not None]
    assert len(details) == 1
    bars = [e for e in parsed(whole.page).findall(".//{*}rect") if "exceeds" in e.get("class", "")]
    assert len(bars) == 1 + 2  # one in the legend


def test_many_layers_share_bars_without_hiding_the_worst(whole: Pipeline) -> None:
    whole.bisection([1e-6] * 700 + [0.5] + [1e-6] * 299)
    report(whole)
    bars = [e for e in parsed(whole.page).findall(".//{*}rect") if "exceeds" in e.get("class", "")]
    assert len(bars) == 2
    assert "1 of 1000 layers beyond" in text_of(whole.page)


def test_benchmark_shows_medians_and_ratios(whole: Pipeline) -> None:
    whole.benchmark()
    report(whole)
    check_self_contained(whole.page)
    text = text_of(whole.page)
    for words in (
        "torch f32 1,250 ms 1,200 to 1,300",
        "fast 125 ms 1,200 to 1,300 1,250 ms 1,200 to 1,300 10 × 9.5 to 10.5 256.0 MiB",
        "int8 not measured: OpenVINO artifacts have no precision int8",
        "fast 10 s 9.5 to 10.5 10 9.5 to 10.5 1.00 GiB",
    ):
        assert words in text


@pytest.mark.parametrize("name", ["evaluation/vqa-scenes.json", "bisect/x.json", "benchmark.json"])
@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"schema_version": 9}',
        '{"schema_version": 1, "tasks": 3, "components": [7], "metrics": null}',
        '{"schema_version": 2, "tasks": 3, "machine": {}}',
    ],
)
def test_damaged_results_of_other_commands_become_notices(
    whole: Pipeline, name: str, content: str
) -> None:
    path = whole.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert report(whole).state == "passed"
    check_self_contained(whole.page)
    assert f"Not readable: {path}" in text_of(whole.page)


def test_damaged_manifest_becomes_a_notice(whole: Pipeline) -> None:
    next(whole.folder.glob("vqa/bm1684x/f16/*.manifest.json")).write_text('{"schema_version": 1}')
    assert report(whole).state == "incomplete"
    assert "damaged manifest" in text_of(whole.page)


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, targets={"bm1684x": ["f16"]})
    checkpoint = {"source": HOSTILE, "revision": HOSTILE, "weights_sha256": HOSTILE}
    pipeline.build(
        files={HOSTILE.replace("/", ""): {"sha256": "ab" * 32, "size_bytes": 1}},
        tools={HOSTILE: HOSTILE},
        commands=[[HOSTILE]],
        rewrites=[{"name": HOSTILE, "reason": HOSTILE, "sites": 1, "max_abs_error": 0.0}],
        checkpoint={**checkpoint, "architecture": HOSTILE},
    )
    bad = component_check("caption", "text_decoder", "bm1684x", "f16", 0.3, 5e-3)
    bad |= {"problems": [HOSTILE], "variant": HOSTILE}
    wrong = token_check("caption", "bm1684x", "f16", [("a", HOSTILE)], text=HOSTILE)
    pipeline.verdict([bad, wrong], not_simulated=[HOSTILE], tools={HOSTILE: HOSTILE})
    path = pipeline.evaluation()
    hostile = path.read_text().replace("a red ring", json.dumps(HOSTILE)[1:-1])
    path.write_text(hostile.replace("held-out scenes", json.dumps(HOSTILE)[1:-1]))
    report(pipeline)
    check_self_contained(pipeline.page)
    assert text_of(pipeline.page).count(" ".join(HOSTILE.split())) >= 8


def test_thumbnails_outside_the_evaluation_folder_are_not_read(whole: Pipeline) -> None:
    thumbnail = whole.folder / "evaluation" / "thumbnails" / "one.jpg"
    (whole.folder / "secret.jpg").write_bytes(thumbnail.read_bytes())
    report(whole)
    assert whole.page.read_text().count("<img") == 4
    path = whole.evaluation()
    path.write_text(path.read_text().replace("thumbnails/one.jpg", "../secret.jpg"))
    report(whole)
    assert whole.page.read_text().count("<img") == 3


def test_many_precisions_stay_below_five_megabytes(tmp_path: Path) -> None:
    values = ["f32", "f16", "bf16", "int8", "int4", "w8f16", "w8bf16", "w4f16", "w4bf16"]
    precisions = {"openvino": ["f32", "f16"], "bm1684x": ["f32", "f16", "bf16"]}
    pipeline = Pipeline(tmp_path, tasks=("caption", "vqa", "itm"), targets=precisions)
    pipeline.targets = {f"bm{i}": values for i in range(6)}
    pipeline.build()
    pipeline.verdict(pipeline.passing_checks())
    assert report(pipeline).size_bytes < 5_000_000
    check_self_contained(pipeline.page)


def test_nothing_verified_yet_is_exit_code_2_with_advice(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    with pytest.raises(InputError, match="run: make verify CONFIG="):
        report(pipeline)
    result = run_stage("verify", "report", "--config", str(pipeline.config))
    assert result.returncode == 2
    assert "nothing was verified yet" in result.stderr
    assert "Traceback" not in result.stderr
    assert not pipeline.page.exists()


@pytest.mark.parametrize(
    "content", ["", "not json", "[]", '{"checks": 3}', '{"checks": [3]}', "{}"]
)
def test_damaged_verdict_is_exit_code_2_and_keeps_the_old_page(
    whole: Pipeline, content: str
) -> None:
    report(whole)
    before = whole.page.read_bytes()
    (whole.folder / "verify.json").write_text(content)
    with pytest.raises(InputError, match="damaged"):
        report(whole)
    assert whole.page.read_bytes() == before


@pytest.mark.parametrize("damage", [lambda t: t[: len(t) // 2], lambda t: t.replace("4", "5", 1)])
def test_a_torn_or_edited_page_is_written_again(
    whole: Pipeline, damage: Callable[[str], str]
) -> None:
    report(whole)
    before = whole.page.read_text()
    assert report(whole).unchanged
    assert damage(before) != before
    whole.page.write_text(damage(before))
    assert not report(whole).unchanged
    assert whole.page.read_text() == before


def test_forged_figures_are_refused(whole: Pipeline) -> None:
    report(whole)
    verdict = whole.folder / "verify.json"
    verdict.write_text(verdict.read_text().replace('"samples": 4', '"samples": 9'))
    with pytest.raises(InputError, match="changed after it was written"):
        report(whole)


def test_command_says_where_the_page_is(whole: Pipeline) -> None:
    result = run_stage("verify", "report", "--config", str(whole.config))
    assert result.returncode == 0, result.stderr
    assert "report.html" in result.stderr
    assert "verified" in result.stderr


def test_logarithmic_axis() -> None:
    axis = LogAxis.around([2e-7, 5e-3, None, 0.0])
    assert (axis.low, axis.high) == (-7, -2)
    assert axis.position(1e-7) == 0.0
    assert axis.position(1e-2) == 100.0
    assert axis.position(1e-4) == 60.0
    assert axis.position(0.0) == 0.0
    assert axis.position(5.0) == 100.0
    assert LogAxis.around([1e-3]).ticks[-1] == (100.0, "10⁻²")


def test_figures_in_words() -> None:
    assert [exponent(v) for v in (5.04e-4, 0.0, None, float("nan"), 1.0)] == [
        "5.0e-4",
        "0",
        "–",
        "–",
        "1.0e0",
    ]
    assert [file_size(v) for v in (2048, 3 << 20, 5 << 30)] == ["2 KiB", "3.0 MiB", "5.00 GiB"]
    assert [times(v) for v in (1.26, 40.0, float("inf"), None)] == ["1.3×", "40×", "exact", "–"]


def test_margin_is_that_of_the_figure_closest_to_its_bound() -> None:
    check = component_check("caption", "text_decoder", "openvino", "f16", 1e-3, 5e-3)
    check["metrics"]["cosine"] = 1 - 2e-5
    check["tolerance"]["min_cosine"] = 1 - 3e-5
    other = component_check("caption", "vision_encoder", "openvino", "f16", 1e-3, 5e-3)
    (closest,) = [tightest(rows([check, other]))]
    assert closest is not None
    assert closest.part == "text_decoder"
    assert closest.margin == pytest.approx(1.5)


def test_host_and_layers_have_their_own_table(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.build()
    base = component_check("caption", "text_decoder", "openvino", "f16", 1e-3, 5e-3)
    layers = base | {
        "gap": "target_layers",
        "kind": "layers",
        "metrics": {"introduced_error": 2e-6},
        "tolerance": {"max_introduced_error": 5e-6},
    }
    finding = {"part": "settings", "where": "end_token_id", "what": "3 instead of 2"}
    host = base | {
        "gap": "checkpoint_vs_host",
        "kind": "host",
        "component": None,
        "metrics": {"findings": [finding]},
        "tolerance": {"source": "the checkpoint's own files"},
        "passed": False,
        "problems": ["settings: end_token_id: 3 instead of 2"],
    }
    pipeline.verdict([base, layers, host])
    assert report(pipeline).state == "failed"
    check_self_contained(pipeline.page)
    text = text_of(pipeline.page)
    assert "settings: end_token_id: 3 instead of 2" in text
    assert "error of the worst layer by itself 2.0e-6 at most 5.0e-6 passed" in text
    assert "differences from the checkpoint 1 0 failed" in text


@pytest.mark.parametrize(("error", "used"), [(0.2, None), (0.6, 2.0)])
def test_a_bound_that_finds_no_fault_does_not_look_like_a_check(
    error: float, used: float | None
) -> None:
    check = component_check("itm", "vision_encoder", "bm1688", "w4f16", error, 0.3)
    check["metrics"]["cosine"] = 1.0
    check["tolerance"]["decided_by"] = "answers"
    (row,) = rows([check])
    assert (row.allowed, row.bound) == ("answers decide", None)
    assert figures(row)[0][2] == "at most 3.0e-1; answers decide"
    assert row.used == (None if used is None else pytest.approx(used))
