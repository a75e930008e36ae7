"""Nets compiled for several shapes: configuration, stages of a file, and the one that runs."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import yaml

from compile.bmodel.build import check_buffers
from compile.bmodel.info import parse_info
from compile.pipeline import overtaken
from configs.errors import ConfigError, ToolError
from configs.load import load_pipeline
from configs.schema import ShapeVariants, StaticShapes
from pipeline.command import select
from pipeline.net_shapes import largest_first, net_shapes
from runtime import Captioner, QuestionAnswerer
from runtime.decoding.batching import row_groups, run_rows
from runtime.files.manifests import read_component_manifest
from runtime.files.nets import Estimate, Net, TensorSpec
from runtime.sessions.session import ArrayDict, SessionOptions
from runtime.sessions.simulated_session import SimulatedSession
from tests.compile_private import ROOT, private_pipeline
from tests.conftest import run_stage
from tests.runtime_support import IMAGES

STAND_IN = ROOT / "tests" / "stand_in"
SHAPES = StaticShapes(
    text_tokens=8,
    past_tokens=31,
    variants=ShapeVariants(batch=(4,), text_tokens=(4,), past_tokens=(8, 16), beams=(3,)),
)


def names(task: str, component: str) -> list[str]:
    return [shape.name for shape in net_shapes(task, component, SHAPES, 65)]  # type: ignore[arg-type]


def test_each_net_varies_in_what_it_depends_on() -> None:
    assert names("caption", "vision_encoder") == ["main", "main_4b"]
    assert names("caption", "cross_key_values") == ["main", "main_4b"]
    # The contexts of a vqa decoder are questions, padded to the longest.
    assert names("vqa", "cross_key_values") == ["main"]
    assert names("itm", "text_encoder_unimodal") == ["main", "main_4t"]
    assert names("caption", "text_decoder") == [
        *("first_pass", "first_pass_4t"),
        *("step", "step_3b", "step_8p", "step_8p_3b", "step_16p", "step_16p_3b"),
    ]


def test_the_first_stage_is_the_largest_in_every_axis() -> None:
    steps = [
        shape for shape in net_shapes("caption", "text_decoder", SHAPES, 65) if shape.net == "step"
    ]
    first = largest_first(steps)[0]
    assert (first.axes["batch"], first.axes["past_tokens"]) == (3, 31)
    assert all(first.axes[axis] >= length for one in steps for axis, length in one.axes.items())


@pytest.mark.parametrize(
    ("task", "variants", "message"),
    [
        ("caption", {"text_tokens": [8]}, "not below text_tokens"),
        ("caption", {"past_tokens": [40]}, "not below past_tokens"),
        ("caption", {"batch": [1]}, "batch"),
        ("caption", {"batch": [4, 4]}, "listed twice"),
        ("itm", {"past_tokens": [8]}, "not below past_tokens"),
        ("itm", {"beams": [3]}, "has no decoder"),
        ("itm", {"heads": [3]}, "heads"),
    ],
)
def test_lengths_that_make_no_sense_are_refused(
    tmp_path: Path, task: str, variants: dict[str, list[int]], message: str
) -> None:
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data["tasks"][task]["shapes"]["variants"] = variants
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=message):
        load_pipeline(path)


@pytest.mark.parametrize(
    ("task", "shapes", "least"),
    [
        ("caption", {"variants": {"past_tokens": [2, 9]}}, 3),
        ("vqa", {"variants": {"past_tokens": [1]}}, 3),
        ("vqa", {"variants": {"text_tokens": [3]}}, 4),
        ("itm", {"text_tokens": 2}, 4),
    ],
)
def test_lengths_whose_attentions_are_not_fused_are_refused(
    tmp_path: Path, task: str, shapes: dict[str, object], least: int
) -> None:
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data["tasks"][task]["shapes"].update(shapes)
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    expected = rf"pipeline\.yaml: tasks\.{task}\.shapes\..* too short for bm1684x.*least {least}"
    with pytest.raises(ConfigError, match=expected):
        load_pipeline(path)
    # Asked for by name, without a line in the file.
    data["targets"] = {"bm1684": {"precisions": ["f32"]}}
    data["verify"]["tokens"] = {"onnx": data["verify"]["tokens"]["onnx"]}
    path.write_text(yaml.safe_dump(data))
    load_pipeline(path)
    with pytest.raises(ConfigError, match="too short for bm1688"):
        select(path, target="bm1688")
    data["targets"] = {"bm1688": {"precisions": ["f16"], "attention_fusion": "recorded"}}
    path.write_text(yaml.safe_dump(data))
    load_pipeline(path)


def test_prompts_of_captions_may_be_short(tmp_path: Path) -> None:
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    asked = {"text_tokens": [2, 3], "past_tokens": [3]}
    data["tasks"]["caption"]["shapes"]["variants"] = asked
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    load_pipeline(path)


def test_a_call_takes_what_it_fills() -> None:
    assert row_groups(7, (1, 4)) == [4, 1, 1, 1]
    assert row_groups(8, (1, 2, 4)) == [4, 4]
    assert row_groups(3, (4,)) == [3]
    assert row_groups(0, (1, 4)) == []


def net(name: str, batch: int, past: int, *variants: Net) -> Net:
    specs = (TensorSpec("past.0.key", "past.0.key", (batch, past, 4, 32), "float16"),)
    axes = {"batch": batch, "past_tokens": past}
    return Net(name, "x.bmodel", specs, (), axes, artifact_net="step", variants=variants)


def test_without_estimates_the_smallest_stage_that_fits_is_chosen() -> None:
    step = net("step", 1, 31, net("step_8p", 1, 8), net("step_3b", 3, 31), net("both", 3, 8))
    assert step.fastest(batch=1, past_tokens=8).name == "step_8p"
    assert step.fastest(batch=1, past_tokens=9).name == "step"
    assert step.fastest(batch=2, past_tokens=3).name == "both"
    assert step.fastest(batch=3, past_tokens=31).name == "step_3b"
    assert step.taking({"past.0.key": (3, 8, 4, 32)}).name == "both"
    # Eight positions with a short cache are more work than four with a long one.
    mixed = net("step", 1, 31, net("eight", 8, 2), net("four", 4, 31), net("short", 4, 8))
    assert mixed.fastest(batch=3, past_tokens=1).name == "short"
    assert mixed.fastest(batch=3, past_tokens=9).name == "four"
    # What fits none is the net's own, which refuses it in words.
    assert step.taking({"past.0.key": (2, 8, 4, 32)}).name == "step"


def first_pass(*tokens_and_ms: tuple[int, float]) -> Net:
    main, *others = (
        Net(f"{tokens}t", "x.bmodel", (), (), {"text_tokens": tokens}, Estimate(ms, "compiler"))
        for tokens, ms in tokens_and_ms
    )
    return replace(main, variants=tuple(others))


def test_the_faster_stage_is_chosen_and_a_slower_one_is_named() -> None:
    # BM1684X, BLIP-base, w8f16: fewer tokens take longer.
    net = first_pass((16, 4.164), (8, 4.552), (4, 5.876))
    assert [net.fastest(text_tokens=tokens).name for tokens in (1, 4, 5, 16)] == ["16t"] * 4
    warnings = list(overtaken("caption", SimpleNamespace(nets=[net])))  # type: ignore[arg-type]
    assert [w.split(" is not faster than ")[0] for w in warnings] == [
        "caption: 8t (4.552 ms)",
        "caption: 4t (5.876 ms)",
    ]
    net = first_pass((16, 5.0), (8, 4.0), (4, 3.0))
    assert [net.fastest(text_tokens=tokens).name for tokens in (1, 5, 9)] == ["4t", "8t", "16t"]
    assert not list(net.overtaken())
    without = replace(net, variants=(replace(net.variants[0], estimate=None), *net.variants[1:]))
    assert without.fastest(text_tokens=1).name == "4t"


def test_rows_of_a_step_are_right_on_bm1684(exported_artifacts: Path, tmp_path: Path) -> None:
    """Its compiler gets a LayerNorm of ``[rows, 128]`` wrong in every row but the first."""
    pipeline = private_pipeline(exported_artifacts, tmp_path, "caption", "text_decoder")
    pipeline.data["tasks"]["caption"]["shapes"]["variants"] = {"beams": [2, 3]}
    pipeline.write()
    built = pipeline.run("--target", "bm1684", "--component", "text_decoder")
    assert built.returncode == 0, built.stderr
    (path,) = (pipeline.root / "caption" / "BM1684").glob("*text_decoder*.manifest.json")
    step = read_component_manifest(path).net("step")
    graph = onnxruntime.InferenceSession(pipeline.root / "caption" / "onnx" / "text_decoder.onnx")
    rng = np.random.default_rng(0)
    options = SessionOptions(device="simulator")
    with SimulatedSession(read_component_manifest(path), options) as session:
        assert [shape.axes["batch"] for shape in step.shapes] == [1, 2, 3]
        for shape in step.shapes:
            feeds = step_feeds({spec.name: spec.shape for spec in shape.inputs}, rng)
            given = {spec.name: feeds[spec.name] for spec in graph.get_inputs()}
            expected = graph.run(["logits"], given)[0]
            found = session.run(feeds, net="step")["logits"]
            assert np.abs(expected).max() > 1
            np.testing.assert_allclose(found, expected, atol=5e-3)


def step_feeds(shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> ArrayDict:
    """A token over a half full cache."""
    rows, past = shapes["past.0.key"][:2]
    used = past // 2
    mask = np.full((rows, 1, 1, past + 1), -10000, np.float32)
    mask[..., :used] = mask[..., -1] = 0
    feeds = {
        name: rng.normal(0, 1, shape).astype(np.float32)
        for name, shape in shapes.items()
        if name.startswith(("past.", "cross."))
    }
    ids = rng.integers(5, 90, (rows, 1))
    positions = np.full((rows, 1), used)
    return {
        **feeds,
        **{"input_ids": ids, "position_ids": positions, "self_attention_mask": mask},
    }


def test_stages_are_read_from_a_file() -> None:
    stage = "stage {0}, core num: 1\ninput: x, [{1}, 3], float16,\noutput: y, [{1}, 2], float16,\n"
    text = (
        f"net 0: [main]  static\n{stage.format(0, 4)}{stage.format(1, 1)}device mem size: 9 (w)\n"
    )
    info = parse_info(text.splitlines(), "x.bmodel")
    assert [one.inputs[0].shape for one in info.nets["main"]] == [(4, 3), (1, 3)]
    found = info.stage("main", {"x": (1, 3)})
    assert found is not None
    assert found.outputs[0].shape == (1, 2)
    assert info.stage("other", {}) is None


def test_a_stage_that_needs_more_than_the_first_reserves_is_refused() -> None:
    line = "device mem size: 1285376 (weight: 1142784, instruct: 40192, runtime: {0})\n"
    text = "net 0: [main]  static\nstage 0, core num: 1\ninput: x, [4, 3], float16,\n"
    sizes = {
        name: parse_info((text + line.format(size)).splitlines(), "x.bmodel").buffer_bytes
        for name, size in (("step", 102400), ("step_9p", 102400), ("step_4p", 106496))
    }
    job = SimpleNamespace(name="vqa/text_decoder bm1684x f16", task="vqa")
    with pytest.raises(
        ToolError, match=r"buffers of step_4p 106496 bytes exceed those of step, 10"
    ):
        check_buffers(job, sizes)  # type: ignore[arg-type]
    del sizes["step_4p"]
    check_buffers(job, sizes)  # type: ignore[arg-type]


def test_two_stages_of_one_file_answer_as_one_by_one(
    exported_artifacts: Path, tmp_path: Path
) -> None:
    """Built by the real compiler for three images at once, run on the simulator."""
    pipeline = private_pipeline(exported_artifacts, tmp_path, "caption", "cross_key_values")
    pipeline.data["tasks"]["caption"]["shapes"]["variants"] = {"batch": [3]}
    pipeline.write()
    built = pipeline.run("--target", "bm1684x", "--component", "cross_key_values")
    assert built.returncode == 0, built.stderr
    (path,) = (pipeline.root / "caption" / "BM1684X").glob("*.manifest.json")
    manifest = read_component_manifest(path)
    (made,) = manifest.nets
    assert [shape.name for shape in made.shapes] == ["main", "main_3b"]
    assert {shape.file for shape in made.shapes} == {made.file}
    (spec,) = made.inputs
    rows = np.random.default_rng(0).normal(size=(4, *map(int, spec.shape[1:])))
    with SimulatedSession(manifest, SessionOptions(device="simulator")) as session:
        called: Counter[str] = Counter()
        execute = session._execute

        def counted(stage: Net, arrays: list[np.ndarray]) -> list[np.ndarray]:
            called[stage.name] += 1
            return execute(stage, arrays)

        session._execute = counted  # type: ignore[method-assign]
        together = run_rows(session, {spec.name: rows})
        alone = [session.run({spec.name: rows[i : i + 1]}) for i in range(4)]
    assert called == {"main_3b": 1, "main": 5}
    for name, array in together.items():
        expected = np.concatenate([one[name] for one in alone])
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(array, expected, atol=2e-3 * np.abs(expected).max())


@pytest.fixture(scope="session")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captioning and question answering in many shapes, for BM1684X."""
    folder = tmp_path_factory.mktemp("varied")
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    del data["tasks"]["itm"]
    data["artifacts"] = str(folder)
    data["targets"] = {"bm1684x": {"precisions": ["f16"]}}
    data["tasks"]["caption"]["shapes"]["variants"] = SHAPES.variants.model_dump(mode="json")
    asked = {"text_tokens": [8, 16], "past_tokens": [4], "beams": [2]}
    data["tasks"]["vqa"]["shapes"]["variants"] = asked
    config = folder / "pipeline.yaml"
    config.write_text(yaml.safe_dump(data))
    for stage in ("export", "compile"):
        result = run_stage(stage, "--config", str(config))
        assert result.returncode == 0, result.stderr
    return folder / data["name"]


@pytest.mark.slow
@pytest.mark.parametrize("device", ["simulator", "0"])
def test_answers_do_not_depend_on_the_stages(
    reference_artifacts: Path, varied: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(STAND_IN))
    images, prompts = IMAGES[:6], [None, "a picture of"] * 3
    found = []
    for folder in (reference_artifacts, varied):
        with Captioner.from_artifacts(folder, target="bm1684x", device=device) as captioner:
            greedy = captioner.batch(images, prompts, max_new_tokens=24)
            beams = captioner.batch(images[:2], num_beams=3, max_new_tokens=12)
        found.append([one.token_ids for one in (*greedy, *beams)])
    assert found[0] == found[1]
    questions = [["how many circles are there?", "what color is the circle?"]] * 2
    with (
        QuestionAnswerer.from_artifacts(reference_artifacts, target="bm1684x", device=device) as a,
        QuestionAnswerer.from_artifacts(varied, target="bm1684x", device=device) as b,
    ):
        assert a.batch(images[:2], questions) == b.batch(images[:2], questions)
    for name in ("sophon.sail", "sophon"):
        sys.modules.pop(name, None)
