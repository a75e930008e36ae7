"""Decoders whose first pass checks drafted tokens: built for chips, run on their simulators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import ConfigError
from configs.load import load_pipeline
from configs.schema import StaticShapes
from pipeline.manifest import read_manifest
from pipeline.net_shapes import net_shapes
from pipeline.tpu_tools.answer_times import parts, total
from runtime import Captioner
from runtime.decoding.decoder_run import worth_of_drafts
from runtime.files.manifests import ComponentManifest, read_task_manifest
from runtime.files.nets import Estimate, Net, TensorSpec
from runtime.generation.generate import generate
from runtime.generation.settings import GenerationSettings
from runtime.sessions.session import SessionOptions
from runtime.tasks.artifacts import open_session
from tests.compile_private import ROOT, private_pipeline
from tests.runtime_support import IMAGES
from tests.test_runtime_drafts import DRAFTS, Scripted

VISION, CROSS = ("vision_encoder", "main"), ("cross_key_values", "main")
FIRST, STEP = ("text_decoder", "first_pass"), ("text_decoder", "step")


@pytest.mark.parametrize("target", ["bm1684", "bm1684x"])
def test_lossless_on_the_simulator(exported_artifacts: Path, tmp_path: Path, target: str) -> None:
    """A full cache included: the last drafts have no slots left."""
    pipeline = private_pipeline(exported_artifacts, tmp_path, "caption", "text_decoder")
    pipeline.shapes()["draft_tokens"] = 7
    pipeline.write()
    built = pipeline.run("--target", target, "--component", "text_decoder")
    assert built.returncode == 0, built.stderr
    (path,) = pipeline.root.glob("caption/BM*/*text_decoder*.manifest.json")
    decoder = read_manifest(ComponentManifest, path)
    assert [net.answers_everywhere for net in decoder.nets] == [True, False]
    assert "every_logit" in [rewrite.name for rewrite in decoder.rewrites if rewrite.sites]
    manifest = read_task_manifest(exported_artifacts / "caption" / "manifest.json")
    session = open_session(decoder, SessionOptions(device="simulator"))
    with session, Captioner.from_artifacts(exported_artifacts, target="onnx") as plain:
        cross = plain.encode_image(plain.preprocessor(IMAGES[:2]))
        prompts = [plain.tokenizer.prompt(text) for text in (None, "a picture of")]

        def answers(drafter: Scripted | None, **settings: Any) -> list[list[int]]:
            given = GenerationSettings(**settings)
            found = generate(session, manifest, cross, prompts, given, drafter=drafter)
            return [one.token_ids.tolist() for (one,) in found]

        for rules in ({}, {"max_new_tokens": 40, "min_new_tokens": 36}):
            expected = answers(None, **rules)
            for name in ("right", "alternating"):
                drafter = Scripted(expected, *DRAFTS[name])
                before = sum(session.launches.values())
                assert answers(drafter, draft_tokens=7, **rules) == expected
                assert sum(session.launches.values()) - before < sum(map(len, expected)) / 1.5


def test_only_a_captioners_first_pass_grows() -> None:
    shapes = StaticShapes(text_tokens=8, past_tokens=31, draft_tokens=15)
    lengths = {
        net.name: net.axes["text_tokens"]
        for net in net_shapes("caption", "text_decoder", shapes, 9)
    }
    assert lengths == {"first_pass": 16, "step": 1}
    (vision,) = net_shapes("caption", "vision_encoder", shapes, 9)
    assert vision.axes["text_tokens"] == 8


@pytest.mark.parametrize(
    ("task", "drafts", "message"),
    [
        ("vqa", 3, r"tasks\.vqa\.shapes\.draft_tokens"),
        ("itm", 3, r"tasks\.itm\.shapes\.draft_tokens"),
        ("caption", 31, r"past_tokens \(31\) must exceed"),
        ("caption", -1, "draft_tokens"),
    ],
)
def test_drafts_that_no_net_could_check_are_refused(
    tmp_path: Path, task: str, drafts: int, message: str
) -> None:
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data["tasks"][task]["shapes"]["draft_tokens"] = drafts
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=message):
        load_pipeline(path)


def test_the_estimate_counts_passes() -> None:
    nets = {VISION, CROSS, FIRST, STEP}
    (plain,) = parts("caption", nets, 12)
    whole, drafted = parts("caption", nets, 12, 1.5)
    assert whole == plain
    assert dict(drafted.calls) == {VISION: 1, CROSS: 1, FIRST: 8}
    assert total(drafted, {VISION: 10.0, CROSS: 1.0, FIRST: 4.0}) == 43.0


@pytest.mark.parametrize(("first_ms", "drafts"), [(1.2, 7), (1.6, 0), (None, 7)])
def test_a_pass_that_takes_longer_than_it_saves_is_not_made(
    first_ms: float | None, drafts: int
) -> None:
    mask = TensorSpec("self_attention_mask", "mask", (1, 1, 8, 39), "float32")

    def net(name: str, milliseconds: float | None) -> Net:
        estimate = None if milliseconds is None else Estimate(milliseconds, "compiler")
        return Net(name=name, file="x", inputs=(mask,), outputs=(), estimate=estimate)

    assert worth_of_drafts(net("first_pass", first_ms), net("step", 1.0)) == drafts


def test_nets_say_whether_every_token_has_an_answer() -> None:
    def net(rows: int | str, tokens: int | str) -> Net:
        mask = TensorSpec("self_attention_mask", "mask", (1, 1, tokens, 39), "float32")
        logits = TensorSpec("logits", "logits", (rows, 199), "float32")
        return Net(name="main", file="x", inputs=(mask,), outputs=(logits,))

    assert net(8, 8).answers_everywhere
    assert not net(1, 8).answers_everywhere
    assert not net(1, 1).answers_everywhere
    assert not net("batch", "text_tokens").answers_everywhere
    assert [spec.name for spec in net(8, 8).fed] == ["self_attention_mask"]
    assert replace(net(8, 8), first_logit="first").fed[-1].artifact_name == "first"
