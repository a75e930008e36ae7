"""Manifests are read strictly: newer, damaged or unsafe artifacts are refused in one line."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Captioner, Matcher
from runtime.errors import ArtifactError, BackendError, InputError
from runtime.files.manifests import (
    TASK_MANIFEST,
    ComponentManifest,
    TaskManifest,
    manifest_text,
    read_component_manifest,
    read_manifest,
)
from runtime.files.number_formats import narrowed, widened
from runtime.sessions.session import SessionOptions
from runtime.tasks.artifacts import open_session
from tests.runtime_support import IMAGES

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def folder(exported_artifacts: Path, tmp_path: Path) -> Path:
    """A private copy of the caption task's ONNX artifacts."""
    target = tmp_path / "caption"
    ignored = shutil.ignore_patterns("openvino", "BM*", "*.npz")
    shutil.copytree(exported_artifacts / "caption", target, ignore=ignored)
    return target


def change(path: Path, edit: Change) -> None:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def refused(action: Callable[[], object], message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_manifest_is_read_and_written_with_the_same_keys(reference_artifacts: Path):
    found = 0
    for path in reference_artifacts.glob("*/**/*manifest.json"):
        kind = TaskManifest if path.name == TASK_MANIFEST else ComponentManifest
        text = manifest_text(read_manifest(kind, path, unknown=False))
        assert json.loads(text) == json.loads(path.read_text())
        found += 1
    assert found > 10


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(schema_version=2), "newer than this version"),
        (lambda m: m.update(schema_version="1"), "not a task manifest"),
        (lambda m: m.update(kind="component"), "not a task manifest"),
        (lambda m: m.pop("text"), "text: this key is missing"),
        (lambda m: m["text"].pop("end_token_id"), "end_token_id"),
        (lambda m: m.update(image=3), "damaged manifest"),
        (lambda m: m["files"].update({"../x": m["files"].popitem()[1]}), "files: '../x' leaves"),
        (
            lambda m: m["text"].update(end_token_id=True),
            "end_token_id: True is not of type int",
        ),
        (
            lambda m: m["text"].update(question_start="x"),
            "'x' is not one of cls, enc",
        ),
        (lambda m: m["image"].update(mean=[0.5]), r"image.mean: \[0.5\] is not 3 values"),
        (lambda m: m["image"].update(std=[0.5, 0.5, math.inf]), "Infinity is not a number"),
        (lambda m: m["dimensions"].update(layers="\n2"), r"layers: '\\n2' is not of type int"),
    ],
)
def test_damaged_task_manifests(folder: Path, edit: Change, message: str):
    change(folder / "manifest.json", edit)
    refused(lambda: Captioner.from_artifacts(folder, target="onnx"), message)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "a/../../b", "C:\\x", "\\\\s\\x", "", "a\0", "\ud800"]
)
def test_files_outside_the_folder_are_refused(folder: Path, name: str):
    path = folder / "onnx" / "vision_encoder.manifest.json"
    change(path, lambda m: m["nets"][0].update(file=name))
    refused(lambda: Captioner.from_artifacts(folder, target="onnx"), "nets")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\x00"])
def test_garbled_manifests(folder: Path, text: str):
    (folder / "onnx" / "text_decoder.manifest.json").write_text(text)
    refused(lambda: Captioner.from_artifacts(folder, target="onnx"), "text_decoder")


def test_newer_component_manifests(folder: Path):
    change(folder / "onnx" / "text_decoder.manifest.json", lambda m: m.update(schema_version=9))
    refused(lambda: Captioner.from_artifacts(folder, target="onnx"), "schema_version 9")


def test_keys_of_a_later_writer_are_no_error(folder: Path):
    change(folder / "manifest.json", lambda m: m["text"].update(later=1))
    Captioner.from_artifacts(folder, target="onnx")


def test_missing_things_are_named(folder: Path, tmp_path: Path):
    refused(lambda: Captioner.from_artifacts(tmp_path / "none"), "make export")
    refused(lambda: Matcher.from_artifacts(folder), "holds task caption")
    refused(lambda: Captioner.from_artifacts(folder, target="bm1688"), "there is: onnx")
    refused(
        lambda: Captioner.from_artifacts(folder, target="onnx", precision="f16"),
        "precisions there: f32",
    )
    (folder / "onnx" / "text_decoder.manifest.json").unlink()
    refused(lambda: Captioner.from_artifacts(folder, target="onnx"), "no text_decoder")


def test_changed_files_are_refused_before_loading(folder: Path):
    path = folder / "onnx" / "vision_encoder.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    captioner = Captioner.from_artifacts(folder, target="onnx")
    refused(lambda: captioner.batch(IMAGES[:1]), "SHA-256 differs")
    unchecked = Captioner.from_artifacts(folder, target="onnx", verify_digest=False)
    assert unchecked.batch(IMAGES[:1])
    path.write_bytes(bytes(data[:1000]))
    unchecked.close()
    refused(lambda: unchecked.batch(IMAGES[:1]), "1000 bytes")
    path.unlink()
    refused(lambda: unchecked.batch(IMAGES[:1]), "missing")


def test_a_changed_tokenizer_is_refused(folder: Path):
    path = folder / "processor" / "tokenizer.json"
    path.write_text(path.read_text().replace("[SEP]", "[SEQ]"))
    refused(lambda: Captioner.from_artifacts(folder, target="onnx"), "SHA-256 differs")


def test_a_garbled_graph_is_a_backend_failure(folder: Path):
    path = folder / "onnx" / "vision_encoder.onnx"
    path.write_bytes(b"x" * path.stat().st_size)
    captioner = Captioner.from_artifacts(folder, target="onnx", verify_digest=False)
    with pytest.raises(BackendError, match="cannot load") as caught:
        captioner.batch(IMAGES[:1])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


class TestSession:
    @pytest.fixture
    def session(self, folder: Path):
        manifest = read_component_manifest(folder / "onnx" / "vision_encoder.manifest.json")
        return open_session(manifest, SessionOptions(threads=1))

    def test_inputs_are_checked_and_converted(self, session):
        pixels = np.zeros((1, 3, 96, 96), dtype=np.float64)
        assert session.run({"pixel_values": pixels})["image_embeds"].dtype == np.float32
        with pytest.raises(InputError, match="'pixel_values' is missing"):
            session.run({})
        with pytest.raises(InputError, match="must be"):
            session.run({"pixel_values": pixels[:, :1]})
        with pytest.raises(InputError, match="must be"):
            session.run({"pixel_values": pixels[0]})

    def test_an_unknown_net_is_named(self, session):
        with pytest.raises(ArtifactError, match="no net 'step'"):
            session.run({}, net="step")

    def test_a_closed_session_loads_again(self, session):
        feeds = {"pixel_values": np.zeros((1, 3, 96, 96), dtype=np.float32)}
        first = session.run(feeds)["image_embeds"]
        session.close()
        assert (session.run(feeds)["image_embeds"] == first).all()


def test_host_lookups_replace_ids(folder: Path):
    """A net that takes embeddings is fed ids all the same."""
    path = folder / "onnx" / "cross_key_values.manifest.json"
    table = np.random.default_rng(0).normal(size=(9, 128)).astype(np.float32)
    np.save(path.parent / "table.npy", table)
    lookup = {"indices": "ids", "input": "encoder_hidden_states", "table": "table.npy"}
    change(path, lambda m: m["nets"][0].update(host_lookups=[lookup]))
    session = open_session(read_component_manifest(path), SessionOptions(threads=1))
    ids = np.array([[0, 8, 3]])
    direct = session.run({"encoder_hidden_states": table[ids]})
    looked_up = session.run({"ids": ids})
    assert all((direct[name] == looked_up[name]).all() for name in direct)
    with pytest.raises(InputError, match=r"outside 0\.\.8"):
        session.run({"ids": np.array([[9]])})


def test_bfloat16_rounds_to_nearest_even():
    values = np.array([1.0, 1.00390625, 1.01171875, -2.5, 3.0e38, 0.0], dtype=np.float32)
    back = widened(narrowed(values, "bfloat16"))
    assert back.tolist() == [1.0, 1.0, 1.015625, -2.5, back[4], 0.0]
    assert abs(back[4] / 3.0e38 - 1) < 2**-8


def test_options_are_checked():
    for wrong in ({"mode": "quick"}, {"performance_hint": "speed"}, {"threads": 0}):
        with pytest.raises(InputError):
            SessionOptions(**wrong)
