"""Defects of BModels: compiled by the real tools from a wrong graph, then sealed as if right."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import Task
from pipeline.manifest import file_record
from tests.faults.fault import CHIP_FOLDERS, Fault, Plant
from tests.faults.graph_changes import (
    Change,
    attribute,
    bypass,
    constant,
    graph,
    heads_swapped,
    noise,
    row_off,
    swap,
    swap_layers,
    weight,
)

ROOT = Path(__file__).resolve().parent.parent.parent


def compile_component(folder: Path, component: str, target: str) -> None:
    """Builds one BModel in place, as the Makefile does."""
    config = folder.parent.parent / "pipeline.yaml"
    command = [sys.executable, "-m", "compile", "--config", str(config), "--force"]
    command += ["--task", folder.name, "--component", component, "--target", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def manifest_of(folder: Path, component: str, target: str) -> Path:
    (path,) = (folder / CHIP_FOLDERS[target]).glob(
        f"{folder.name}_{component}_{target}_*.manifest.json"
    )
    return path


def resealed(path: Path) -> None:
    """The manifest agrees with the files beside it."""
    data = json.loads(path.read_text())
    data["files"] = {name: asdict(file_record(path.parent / name)) for name in data["files"]}
    path.write_text(json.dumps(data))


def compiled_from(component: str, target: str, change: Change, *, honest: bool = False) -> Plant:
    """The BModel of a changed graph under the clean build's manifest.

    An ``honest`` manifest says which graph it was compiled from; otherwise nothing but the file
    itself tells.
    """

    def plant(folder: Path) -> None:
        onnx = folder / "onnx"
        manifest = manifest_of(folder, component, target)
        clean = manifest.read_text()
        kept = folder.parent / "right"
        shutil.copytree(onnx, kept)
        graph(component, change)(folder)
        compile_component(folder, component, target)
        shutil.rmtree(onnx)
        kept.rename(onnx)
        if not honest:
            made = json.loads(manifest.read_text())
            manifest.write_text(json.dumps({**json.loads(clean), "files": made["files"]}))

    return plant


def _files(folder: Path, component: str, target: str) -> dict[str, Path]:
    path = manifest_of(folder, component, target)
    return {name: path.parent / name for name in json.loads(path.read_text())["files"]}


def of_another(component: str, target: str, task: str) -> Plant:
    """Another checkpoint's BModel of the same component under this one's manifest."""

    def plant(folder: Path) -> None:
        source = ROOT / "models" / "artifacts" / "reference" / task
        theirs = [p for p in _files(source, component, target).values() if p.suffix == ".bmodel"]
        mine = [p for p in _files(folder, component, target).values() if p.suffix == ".bmodel"]
        shutil.copy(theirs[0], mine[0])
        resealed(manifest_of(folder, component, target))

    return plant


def of_another_chip(component: str, target: str, other: str) -> Plant:
    """Another chip's BModel under this one's manifest."""

    def plant(folder: Path) -> None:
        source = ROOT / "models" / "artifacts" / "reference" / folder.name
        theirs = [p for p in _files(source, component, other).values() if p.suffix == ".bmodel"]
        mine = [p for p in _files(folder, component, target).values() if p.suffix == ".bmodel"]
        shutil.copy(theirs[0], mine[0])
        resealed(manifest_of(folder, component, target))

    return plant


def rows_swapped(component: str, target: str, table: str, first: int, second: int) -> Plant:
    """Two rows of a table that the host looks up change places."""

    def plant(folder: Path) -> None:
        (path,) = [p for n, p in _files(folder, component, target).items() if f".{table}." in n]
        array = np.load(path)
        array[[first, second]] = array[[second, first]]
        np.save(path, array)
        resealed(manifest_of(folder, component, target))

    return plant


def bytes_patched(component: str, target: str) -> Plant:
    """A few values of the coefficient memory are set to zero, as a bad copy would leave them."""

    def plant(folder: Path) -> None:
        (path,) = [p for p in _files(folder, component, target).values() if p.suffix == ".bmodel"]
        onnx = folder / "onnx" / f"{component}.onnx"
        data = bytearray(path.read_bytes())
        at = data.find(_first_row(onnx, "layers.2.feed_forward.outer.weight"))
        assert at > 0
        data[at : at + 64] = bytes(64)
        path.write_bytes(bytes(data))
        resealed(manifest_of(folder, component, target))

    return plant


def _first_row(path: Path, name: str) -> bytes:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    return numpy_helper.to_array(tensor)[0].astype(np.float16).tobytes()


def other_scale(component: str, target: str, lookup: str) -> Plant:
    """A host table that was scaled."""

    def plant(folder: Path) -> None:
        (path,) = [p for n, p in _files(folder, component, target).items() if f".{lookup}." in n]
        np.save(path, np.roll(np.load(path), 1, axis=0))
        resealed(manifest_of(folder, component, target))

    return plant


def outputs_crossed(component: str, target: str, first: str, second: str) -> Plant:
    """The manifest calls two outputs by each other's names."""

    def plant(folder: Path) -> None:
        path = manifest_of(folder, component, target)
        data = json.loads(path.read_text())
        for net in data["nets"]:
            by_name = {spec["name"]: spec for spec in net["outputs"]}
            a, b = by_name[first], by_name[second]
            a["artifact_name"], b["artifact_name"] = b["artifact_name"], a["artifact_name"]
        path.write_text(json.dumps(data))

    return plant


def saturated(model: Any) -> None:
    """Values beyond what half precision holds: a bias that overflows."""
    weight("layers.1.feed_forward.inner.bias", lambda a: a + 7e4 * (np.arange(a.size) == 3))(model)


def _fault(name: str, task: Task, component: str, target: str, plant: Plant, named: str) -> Fault:
    return Fault(
        f"{CHIP_FOLDERS[target]}: {name}",
        task,
        target,
        rf"target: {component}\b.*{named}",
        plant,
        component=component,
        precision="f32" if target == "bm1684" else "f16",
    )


_VISION, _DECODER, _TEXT = "vision_encoder", "text_decoder", "text_encoder"
_X, _8, _4 = "bm1684x", "bm1688", "bm1684"


def _changed(
    name: str,
    task: Task,
    component: str,
    target: str,
    change: Change,
    named: str,
    *,
    honest: bool = False,
) -> Fault:
    plant = compiled_from(component, target, change, honest=honest)
    return _fault(name, task, component, target, plant, named)


BMODEL_FAULTS: list[Fault] = [
    _changed(
        "one query weight off by 1 %",
        "caption",
        _VISION,
        _X,
        weight("layers.2.attention.query.weight", noise(0.01)),
        r"layers\.2\.attention\.query",
    ),
    _changed(
        "one layer's weights off by 1 %",
        "caption",
        _VISION,
        _X,
        weight("layers.1.feed_forward.inner.weight", noise(0.01)),
        r"layers\.1\.feed_forward\.inner",
    ),
    _changed(
        "one layer's weights off by 1 %, source named",
        "vqa",
        _VISION,
        _X,
        weight("layers.0.attention.output.weight", noise(0.01)),
        r"(layers\.0\.attention\.output|source)",
        honest=True,
    ),
    _changed(
        "keys and values swapped",
        "caption",
        _DECODER,
        _X,
        swap("layers.0.attention.key.weight", "layers.0.attention.value.weight"),
        r"(layers\.0\.attention|BModel)",
    ),
    _changed(
        "layers swapped",
        "vqa",
        _TEXT,
        _X,
        swap_layers("layers.0", "layers.1"),
        r"(layers\.(0|1)\.|BModel)",
    ),
    _changed(
        "head transposed",
        "caption",
        _DECODER,
        _X,
        weight("head.transform.weight", lambda a: a.T),
        r"(head\.transform|BModel)",
    ),
    _changed(
        "f16 overflow",
        "caption",
        _VISION,
        _X,
        saturated,
        r"layers\.1\.feed_forward\.inner",
    ),
    _changed(
        "mask constant -5",
        "vqa",
        _TEXT,
        _X,
        constant("/Mul", lambda a: a * 0 - 5),
        r"(graph|BModel)",
    ),
    _changed(
        "heads swapped",
        "itm",
        _TEXT,
        _X,
        weight("layers.1.cross_attention.query.weight", heads_swapped),
        r"(layers\.1\.cross_attention|BModel)",
    ),
    _changed(
        "text positions off by one",
        "itm",
        "text_encoder_unimodal",
        _X,
        weight("embeddings.positions", row_off),
        r"(embeddings|BModel)",
    ),
    _fault(
        "two rows of the host's table swapped",
        "caption",
        _DECODER,
        _X,
        rows_swapped(_DECODER, _X, "input_ids", 150, 151),
        r"embeddings\.tokens",
    ),
    _fault(
        "host's positions off by one",
        "caption",
        _DECODER,
        _X,
        other_scale(_DECODER, _X, "position_ids"),
        r"embeddings\.positions",
    ),
    _fault(
        "file of another checkpoint",
        "vqa",
        _VISION,
        _X,
        of_another(_VISION, _X, "caption"),
        r"",
    ),
    _fault("file of another chip", "caption", _VISION, _X, of_another_chip(_VISION, _X, _8), r""),
    _fault(
        "32 weights lost",
        "caption",
        _VISION,
        _X,
        bytes_patched(_VISION, _X),
        r"layers\.2\.feed_forward\.outer",
    ),
    _fault(
        "cross keys and values swapped",
        "caption",
        "cross_key_values",
        _X,
        outputs_crossed("cross_key_values", _X, "cross.0.key", "cross.0.value"),
        r"(layers\.0|BModel|cross\.0)",
    ),
    _changed(
        "one layer scaled by 1.01",
        "itm",
        "vision_encoder",
        _8,
        weight("layers.3.feed_forward.outer.weight", lambda a: a * 1.01),
        r"layers\.3\.feed_forward\.outer",
    ),
    _changed(
        "bias missing",
        "vqa",
        "cross_key_values",
        _8,
        weight("layers.1.value.bias", lambda a: a * 0),
        r"layers\.1\.value",
    ),
    _changed(
        "LayerNorm epsilon 1e-3",
        "itm",
        "vision_encoder",
        _4,
        attribute("/layers.1/feed_forward_norm/LayerNormalization", "epsilon", 1e-3),
        r"(layers\.1\.feed_forward_norm|BModel)",
    ),
    _changed(
        "residual dropped",
        "vqa",
        _VISION,
        _4,
        bypass("/layers.1/Add_1", 0),
        r"(layers\.(1|2)|BModel)",
    ),
]
