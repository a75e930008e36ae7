"""An artifact is reused only when key and digests match, and is never half there."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from configs.errors import InputError, ToolError
from configs.layout import Location
from pipeline.atomic import write_atomically
from pipeline.build import build_component, discard
from pipeline.manifest import Checkpoint, ComponentManifest, Net, read_manifest

FIELDS: dict[str, Any] = {
    "pipeline": "p",
    "task": "caption",
    "component": "vision_encoder",
    "target": "onnx",
    "precision": "f32",
    "nets": (),
    "tools": {},
    "checkpoint": Checkpoint("s", None, "0", "BlipForConditionalGeneration"),
}


def produce(temporary: Path, text: str = "content") -> dict[str, Any]:
    (temporary / "net.onnx").write_text(text)
    return FIELDS


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return Location(tmp_path / "onnx", "net")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_builds_then_reuses(location: Location) -> None:
    first = build_component(location, {"a": 1}, produce)
    second = build_component(location, {"a": 1}, produce)
    assert (first.reused, second.reused) == (False, True)
    assert second.manifest == first.manifest
    assert names(location.folder) == {"net.onnx", "net.manifest.json"}


def test_changed_key_or_content_or_force_rebuilds(location: Location) -> None:
    build_component(location, {"a": 1}, produce)
    assert not build_component(location, {"a": 2}, produce).reused
    location.file(".onnx").write_text("damaged")
    assert not build_component(location, {"a": 2}, produce).reused
    assert location.file(".onnx").read_text() == "content"
    location.file(".onnx").unlink()
    assert not build_component(location, {"a": 2}, produce).reused
    assert not build_component(location, {"a": 2}, produce, force=True).reused
    location.manifest.write_text("{")
    assert not build_component(location, {"a": 2}, produce).reused


def test_failure_keeps_the_good_artifact(location: Location) -> None:
    good = build_component(location, {"a": 1}, produce)

    def failing(temporary: Path) -> dict[str, Any]:
        (temporary / "net.onnx").write_text("half")
        raise ToolError("the tool broke")

    with pytest.raises(ToolError, match="the tool broke"):
        build_component(location, {"a": 2}, failing)
    assert names(location.folder) == {"net.onnx", "net.manifest.json"}
    assert build_component(location, {"a": 1}, produce).manifest == good.manifest


def test_disk_full_is_a_tool_error_and_leaves_nothing(location: Location) -> None:
    def full(_temporary: Path) -> dict[str, Any]:
        with Path("/dev/full").open("w") as stream:
            stream.write("x" * 100_000)
        return FIELDS

    with pytest.raises(ToolError, match=r"No space left on device.*free space"):
        build_component(location, {"a": 1}, full)
    assert names(location.folder) == set()


def _build_slowly(folder: Path) -> None:
    def slow(temporary: Path) -> dict[str, Any]:
        (temporary / "net.onnx").write_text("half")
        (folder / "started").touch()
        time.sleep(60)
        return FIELDS

    build_component(Location(folder, "net"), {"a": 1}, slow)


def test_killed_run_leaves_nothing_that_counts_as_finished(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_build_slowly, args=(tmp_path,))
    process.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "net.manifest.json").exists()
    (tmp_path / "started").unlink()
    assert not build_component(Location(tmp_path, "net"), {"a": 1}, produce).reused
    assert names(tmp_path) == {"net.onnx", "net.manifest.json"}


def _build_counting(folder: Path) -> None:
    def counted(temporary: Path) -> dict[str, Any]:
        with (folder / "count").open("a") as stream:
            stream.write("x")
        time.sleep(0.2)
        return produce(temporary)

    build_component(Location(folder / "onnx", "net"), {"a": 1}, counted)


def test_two_runs_at_once_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=_build_counting, args=(tmp_path,)) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0, 0, 0]
    assert (tmp_path / "count").read_text() == "x"


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "network.onnx"])
def test_only_files_of_the_artifact_are_deleted(location: Location, name: str) -> None:
    build_component(location, {"a": 1}, produce)
    victim = location.folder / name
    if name.startswith("/"):
        victim, name = location.folder.parent / "outside", f"{location.folder.parent}/outside"
    (location.folder / "a").mkdir()
    victim.write_text("precious")
    data = json.loads(location.manifest.read_text())
    data["files"][name] = data["files"]["net.onnx"]
    location.manifest.write_text(json.dumps(data))
    discard(location)
    assert victim.read_text() == "precious"
    assert not build_component(location, {"a": 1}, produce).reused
    assert victim.read_text() == "precious"


def test_an_artifact_is_discarded_with_all_files_of_its_own(location: Location) -> None:
    def produce_nets(temporary: Path) -> dict[str, Any]:
        for name in ("net.bin", "net_step.bmodel"):
            (temporary / name).write_text("x")
        return {**FIELDS, "nets": (Net("step", "net_step.bmodel", (), ()),)}

    build_component(location, {"a": 1}, produce_nets)
    discard(location)
    assert names(location.folder) == set()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("task", "captions", "task: 'captions' is unknown"),
        ("includes", ["decoder"], "includes: 'decoder' is unknown"),
        ("later", 1, "'later': this key is unknown"),
        ("nets", [[]], r"nets\[0\]: \[\] is not an object"),
        ("tools", {"onnx": None}, "tools.*None is not of type str"),
    ],
)
def test_what_the_pipeline_did_not_write_is_refused(
    location: Location, key: str, value: object, message: str
) -> None:
    build_component(location, {"a": 1}, produce)
    data = {**json.loads(location.manifest.read_text()), key: value}
    location.manifest.write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        read_manifest(ComponentManifest, location.manifest)


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000, b"[]", b'{"schema_version": 1}'])
def test_a_damaged_manifest_is_built_again(location: Location, content: bytes) -> None:
    build_component(location, {"a": 1}, produce)
    location.manifest.write_bytes(content)
    assert not build_component(location, {"a": 1}, produce).reused
    assert build_component(location, {"a": 1}, produce).reused


def test_newer_schema_is_refused(location: Location) -> None:
    build_component(location, {"a": 1}, produce)
    text = location.manifest.read_text().replace('"schema_version": 1', '"schema_version": 2')
    location.manifest.write_text(text)
    with pytest.raises(InputError, match="schema_version 2 is newer than this version reads"):
        read_manifest(ComponentManifest, location.manifest)


def test_atomic_write_reports_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ToolError, match="cannot be written"):
        write_atomically(blocked / "verify.json", "{}")
