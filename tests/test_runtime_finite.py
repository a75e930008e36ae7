"""Numbers that overflow are an error of one line, never a result; JSON holds no NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Captioner, Matcher, QuestionAnswerer
from runtime.__main__ import main
from runtime.cli.reports import printable, say_json
from runtime.errors import BackendError
from runtime.sessions.openvino_session import OpenVinoSession
from runtime.sessions.session import Session, SessionOptions
from tests.runtime_support import IMAGES, THREADS

COMPONENTS = ["vision_encoder", "text_encoder", "text_encoder_unimodal", "vision_projection"]
#: One value of a thousand is enough.
BROKEN = [np.nan, np.inf, -np.inf]


def spoil(monkeypatch: pytest.MonkeyPatch, component: str, value: float) -> None:
    """Puts one value into each float output of a component, whatever session runs it."""
    run = Session.run

    def broken(self: Session, *arguments: Any, **options: Any) -> Any:
        outputs = run(self, *arguments, **options)
        if self.manifest.component == component:
            outputs = {name: array.copy() for name, array in outputs.items()}
            for array in outputs.values():
                array.reshape(-1)[-1] = value
        return outputs

    monkeypatch.setattr(Session, "run", broken)


@pytest.mark.parametrize("style", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_match_never_prints_what_is_not_a_number(
    exported_artifacts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    component: str,
    style: list[str],
):
    spoil(monkeypatch, component, np.nan)
    IMAGES[0].save(tmp_path / "a.png")
    command = ["match", str(tmp_path / "a.png"), "--text", "a red square", *style]
    assert main([*command, "--artifacts", str(exported_artifacts), "--target", "onnx"]) == 1
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.count("\n") == 1
    assert f"{component} on onnx f32" in printed.err


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize(
    ("kind", "component"),
    [
        (Captioner, "vision_encoder"),
        (Captioner, "cross_key_values"),
        (Captioner, "text_decoder"),
        (QuestionAnswerer, "text_encoder"),
        (Matcher, "text_encoder"),
    ],
)
def test_every_task_names_the_net(
    exported_artifacts: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
    component: str,
    value: float,
):
    spoil(monkeypatch, component, value)
    with (
        kind.from_artifacts(exported_artifacts, target="onnx", threads=THREADS) as task,
        pytest.raises(BackendError, match=f"{component} on onnx f32: .* is not finite"),
    ):
        task(IMAGES[0], "what is there?")


@pytest.mark.parametrize(
    ("net", "component"), [("cross.0.value", "vision_encoder"), ("logits", "text_decoder")]
)
def test_tensors_that_stay_in_openvino_are_looked_at(
    openvino_artifacts: Path, monkeypatch: pytest.MonkeyPatch, net: str, component: str
):
    infer = OpenVinoSession.infer

    def broken(self: OpenVinoSession, request: Any, tensors: Any) -> None:
        infer(self, request, tensors)
        spec = self.manifest.nets[0].output(net)
        if spec is not None:
            request.get_tensor(spec.artifact_name).data[...] = np.inf

    monkeypatch.setattr(OpenVinoSession, "infer", broken)
    with (
        Captioner.from_artifacts(openvino_artifacts, threads=THREADS) as captioner,
        pytest.raises(BackendError, match=f"{component} on openvino f16: {net} is not finite"),
    ):
        captioner(IMAGES[0])


@pytest.mark.parametrize(
    ("target", "precision", "mode", "cure"),
    [
        ("bm1684x", "f16", "exact", "overflow: build bf16 or f32"),
        ("bm1684x", "w8f16", "exact", "overflow: build bf16 or f32"),
        ("bm1684x", "bf16", "exact", "build that one again"),
        ("openvino", "f16", "fast", "--mode exact"),
    ],
)
def test_the_cure_fits_what_was_built(
    exported_artifacts: Path, target: str, precision: str, mode: str, cure: str
):
    from dataclasses import replace

    from runtime.sessions.onnxruntime_session import OnnxRuntimeSession

    with Matcher.from_artifacts(exported_artifacts, target="onnx") as matcher:
        manifest = matcher.session("text_encoder").manifest
    built = replace(manifest, target=target, precision=precision)
    session = OnnxRuntimeSession(built, SessionOptions(mode=mode))
    with pytest.raises(BackendError, match=cure):
        session.finite("itm_logits", np.array([[0.0, np.nan]], dtype=np.float32))
    # bfloat16, as its bits
    with pytest.raises(BackendError, match="not finite"):
        session.finite("itm_logits", np.array([0x7F80], dtype=np.uint16))


def test_large_numbers_are_numbers(exported_artifacts: Path):
    with Matcher.from_artifacts(exported_artifacts, target="onnx") as matcher:
        session = matcher.session("text_encoder")
        large = np.full(9, 3e38, dtype=np.float32)
        assert session.finite("itm_logits", large) is large
        ids = np.array([1, 2])
        assert session.finite("next_token", ids) is ids


def test_json_is_json(capsys: pytest.CaptureFixture[str]):
    for value in BROKEN:
        with pytest.raises(ValueError, match="not JSON compliant"):
            say_json({"cosine": value})
    text = "a\x1b[2J\n\x7f\x9b\u202e\ud800é"
    say_json({"text": text})
    printed = capsys.readouterr().out
    assert printable(printed[:-1]) == printed[:-1]
    assert json.loads(printed)["text"] == text


def test_nothing_printed_moves_the_cursor():
    assert printable("a\x1b[2J\nb\x7f\u2028\u202e\ud800") == (r"a\x1b[2J\nb\x7f\u2028\u202e\ud800")
    assert printable("naïve 日本 👩‍🚀") == "naïve 日本 👩‍🚀"
