"""Decoders that choose the next token on the chip: built by the compiler, run on the simulator."""

from __future__ import annotations

import itertools
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.errors import ConfigError
from configs.load import load_pipeline
from runtime import Captioner
from runtime.files.manifests import ComponentManifest, read_component_manifest
from runtime.generation.generate import Limits, start_search
from runtime.generation.settings import GenerationSettings
from tests.compile_private import ROOT, private_pipeline
from tests.runtime_support import IMAGES
from tests.test_runtime_drafts import DRAFTS, Scripted
from verify.parity.components import onnxruntime_vs_target
from verify.parity.inputs import Sample
from verify.results import Subject

LIMITS = Limits(longest=20, shortest=0, end_token_id=3)


@pytest.fixture(scope="module")
def artifacts(exported_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captioning on BM1688 with ``decoder_head: argmax``."""
    folder = tmp_path_factory.mktemp("argmax")
    components = ("vision_encoder", "cross_key_values", "text_decoder")
    pipeline = private_pipeline(exported_artifacts, folder, "caption", *components)
    shutil.copytree(
        exported_artifacts / "caption" / "processor", pipeline.root / "caption" / "processor"
    )
    pipeline.data["targets"]["bm1688"]["decoder_head"] = "argmax"
    pipeline.shapes()["draft_tokens"] = 7
    pipeline.write()
    built = pipeline.run("--target", "bm1688")
    assert built.returncode == 0, built.stderr
    return pipeline.root


@pytest.fixture
def sail(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "stand_in"))
    import sophon.sail as module

    yield module
    for name in ("sophon.sail", "sophon"):
        sys.modules.pop(name, None)


def decoder(artifacts: Path) -> ComponentManifest:
    (path,) = (artifacts / "caption" / "BM1688").glob("*text_decoder*.manifest.json")
    return read_component_manifest(path)


def test_every_net_answers_with_a_token_and_its_logit_too(artifacts: Path) -> None:
    for net in decoder(artifacts).nets:
        token, logit = net.output("next_token"), net.output("next_logit")
        assert token is not None
        assert logit is not None
        tokens = 8 if net.name == "first_pass" else 1
        assert (token.shape, token.dtype) == ((tokens, 1), "int32")
        # No cast of all logits to float32 stands before the choice.
        assert (logit.dtype, net.output("logits").dtype) == ("float16", "float16")  # type: ignore[union-attr]


#: What proves that a step's inputs arrived: an element of its token id and of its mask.
PROOF_BYTES = 4 + 2


def test_greedy_search_reads_a_token_and_its_logit(
    artifacts: Path, exported_artifacts: Path, sail
) -> None:
    def read_per_token(captioner: Captioner, **arguments: object) -> list[int]:
        crossed: list[int] = []

        def on_token(_row: int, _token: int) -> None:
            crossed.append(sail.BUS.from_device)

        captioner.batch(IMAGES[:1], on_token=on_token, **arguments)
        return [later - earlier for earlier, later in itertools.pairwise(crossed)]

    plain = Captioner.from_artifacts(exported_artifacts, target="onnx")
    board = Captioner.from_artifacts(artifacts, target="bm1688", device="0")
    with plain, board:
        logits = 2 * board.manifest.text.vocabulary_size + PROOF_BYTES
        chosen = 4 + 2 + PROOF_BYTES
        assert set(read_per_token(board)) == {chosen}
        # Rules about the end token, repetition and beams need every logit.
        forced = read_per_token(board, min_new_tokens=4, max_new_tokens=6)
        assert forced[:3] == [logits] * 3
        assert set(forced[3:]) == {chosen}
        assert set(read_per_token(board, repetition_penalty=1.2)) == {logits}
        for arguments in (
            {},
            {"num_beams": 3},
            {"min_new_tokens": 12},
            {"no_repeat_ngram_size": 2},
        ):
            found = board.batch(IMAGES[:2], ["a picture of", None], **arguments)
            expected = plain.batch(IMAGES[:2], ["a picture of", None], **arguments)
            assert [one.token_ids for one in found] == [one.token_ids for one in expected]


def test_drafts_on_a_board_change_nothing_and_copy_nothing(
    artifacts: Path, exported_artifacts: Path, sail
) -> None:
    """No keys and values are copied, rejected ones neither; the last drafts find a full cache."""
    long = {"max_new_tokens": 40}
    plain = Captioner.from_artifacts(exported_artifacts, target="onnx")
    board = Captioner.from_artifacts(artifacts, target="bm1688", device="0")
    with plain, board:
        for arguments in ({}, long | {"min_new_tokens": 36}, long | {"repetition_penalty": 1.2}):
            given = [*IMAGES[:2]], ["a picture of", None]
            expected = [one.token_ids for one in board.batch(*given, **arguments, draft_tokens=0)]
            for places in DRAFTS.values():
                board._drafts = Scripted(expected, *places)
                found = board.batch(*given, **arguments, draft_tokens=7)
                assert [one.token_ids for one in found] == expected
        assert expected == [one.token_ids for one in plain.batch(*given, **arguments)]
        assert sail.BUS.device_copies == 0
        tokens = [one.token_ids for one in plain.batch(IMAGES[:1])]
        board._drafts = Scripted(tokens, *DRAFTS["right"])
        board(IMAGES[0])
        launched = sum(board.session("text_decoder").launches.values())
        board(IMAGES[0], draft_tokens=7)
        passes = sum(board.session("text_decoder").launches.values()) - launched
        assert passes == 2


@pytest.mark.parametrize(
    ("settings", "tokens", "suffices"),
    [
        ({}, 1, True),
        ({"min_new_tokens": 3}, 3, False),
        ({"min_new_tokens": 3}, 4, True),
        ({"repetition_penalty": 1.1}, 9, False),
        ({"no_repeat_ngram_size": 2}, 9, False),
        ({"do_sample": True, "seed": 0}, 1, False),
        ({"num_beams": 2}, 1, False),
    ],
)
def test_only_a_search_without_rules_takes_tokens(
    settings: dict[str, object], tokens: int, suffices: bool
) -> None:
    given = GenerationSettings(**settings)  # type: ignore[arg-type]
    shortest = 1 + int(settings.get("min_new_tokens", 0))  # type: ignore[call-overload]
    search = start_search([0] * tokens, given, replace(LIMITS, shortest=shortest), 0)
    assert search.takes_tokens is suffices


class Answering:
    """A session that answers with given outputs."""

    def __init__(self, outputs: dict[str, np.ndarray]) -> None:
        self.outputs = outputs

    def run(self, _feeds: object, net: object = None) -> dict[str, np.ndarray]:  # noqa: ARG002
        return self.outputs


@pytest.mark.parametrize(
    ("token", "logit", "passes"), [(2, 5.0, True), (1, 5.0, False), (2, 4.0, False)]
)
def test_a_token_that_is_not_the_best_of_its_own_logits_fails(
    artifacts: Path, token: int, logit: float, passes: bool
) -> None:
    manifest = decoder(artifacts)
    logits = np.zeros((1, 32), dtype=np.float32)
    logits[0, 2] = 5.0
    answered = {
        "logits": logits,
        "next_token": np.array([[token]], dtype=np.int32),
        "next_logit": np.array([[logit]], dtype=np.float32),
    }
    specs = tuple(s for s in manifest.nets[0].outputs if s.name in answered)
    net = replace(manifest.nets[0], outputs=specs)
    subject = Subject(
        "onnxruntime_vs_target", "caption", "text_decoder", "bm1688", "f16", "component", ""
    )
    sample = Sample("text_decoder", "case", net.name, {}, {"logits": logits})
    session = Answering(answered)
    check = onnxruntime_vs_target(
        subject,
        replace(manifest, nets=(net,)),
        session,
        [sample],
        "f16",
        lambda _: None,  # type: ignore[arg-type]
    )
    assert check.passed is passes
    assert passes or "next_token" in check.problems[0]


def test_a_target_without_choice_refuses_it(tmp_path: Path) -> None:
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data["targets"]["openvino"]["decoder_head"] = "argmax"
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=r"targets\.openvino\.decoder_head"):
        load_pipeline(path)
