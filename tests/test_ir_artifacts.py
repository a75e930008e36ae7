"""OpenVINO IR of the reference pipeline: names, dynamic shapes, size, answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino
import pytest

from compile.graphs.parity import random_inputs
from compile.graphs.static_graph import session
from compile.ir.backend import OpenVinoBackend
from compile.ir.parity import ContractModel
from compile.ir.rewrites import Rewritten, ready_cross_keys
from configs.errors import ParityError
from configs.layout import Layout
from configs.load import load_pipeline, load_target
from configs.schema import TASK_COMPONENTS, Component, Task
from pipeline.manifest import ComponentManifest, Net, TensorSpec, read_manifest
from pipeline.net_shapes import net_shapes
from pipeline.tpu_tools.process import MemoryBudget
from runtime.files.manifests import read_task_manifest
from tests.compile_private import private_pipeline

PIPELINE = load_pipeline(Path(__file__).resolve().parent.parent / "configs" / "reference.yaml")
LAYOUT = Layout(PIPELINE)
MERGED = "cross_key_values"
DECODER_REWRITES = [
    "first_logit",
    "fused_self_attention",
    "stateful_cache",
    "shared_cross_attention",
    "ready_cross_keys",
]
#: The captioning projections come out of the vision encoder's own model.
EVERY = [
    (t, c) for t in PIPELINE.tasks for c in TASK_COMPONENTS[t] if (t, c) != ("caption", MERGED)
]


@pytest.mark.parametrize(("task", "component"), EVERY)
def test_ir_keeps_names_and_dynamic_shapes(
    openvino_artifacts: Path,  # noqa: ARG001 - builds them
    task: Task,
    component: Component,
) -> None:
    location = LAYOUT.artifact(task, component, load_target("openvino"), "f16")
    built = read_manifest(ComponentManifest, location.manifest)
    model = openvino.Core().read_model(location.file(".xml"))
    (net,) = built.nets
    assert net.file == f"{component}.xml"
    states = {name for state in net.states for name in (state.past, state.new)}
    outputs: list[TensorSpec] = []
    for part in (component, *built.includes):
        exported = read_manifest(ComponentManifest, LAYOUT.onnx(task, part).manifest).nets[0]
        outputs += exported.outputs
        if part == component:
            assert [spec.name for spec in net.inputs] == [spec.name for spec in exported.inputs]
    assert [spec.name for spec in net.outputs] == [spec.name for spec in outputs]
    for specs, ports in ((net.inputs, model.inputs), (net.outputs, model.outputs)):
        tensors = [spec for spec in specs if spec.name not in states]
        assert {port.any_name for port in ports} - {net.row_index, net.first_logit} == {
            spec.artifact_name for spec in tensors
        }
        for spec in tensors:
            port = next(p for p in ports if spec.artifact_name in p.get_names())
            order = spec.layout.order if spec.layout else range(len(spec.shape))
            dynamic = [isinstance(spec.shape[axis], str) for axis in order]
            assert [d.is_dynamic for d in port.get_partial_shape()] == dynamic
            assert "batch" in spec.shape


def test_captioning_projections_have_no_artifact_of_their_own(openvino_artifacts: Path) -> None:
    folder = openvino_artifacts / "caption" / "openvino" / "f16"
    assert not list(folder.glob(f"{MERGED}*"))
    vision = read_manifest(ComponentManifest, folder / "vision_encoder.manifest.json")
    assert vision.includes == (MERGED,)


@pytest.mark.parametrize(
    ("task", "component", "names"),
    [
        ("caption", "vision_encoder", ["merged_cross_key_values", "ready_cross_keys"]),
        ("caption", "text_decoder", DECODER_REWRITES),
        ("vqa", "text_decoder", DECODER_REWRITES),
        ("vqa", "cross_key_values", ["ready_cross_keys"]),
        ("vqa", "vision_encoder", []),
        ("vqa", "text_encoder", []),
        ("itm", "text_encoder", ["first_row_only"]),
        ("itm", "text_encoder_unimodal", ["first_row_only"]),
    ],
)
def test_every_rewrite_changed_something_and_was_compared(
    openvino_artifacts: Path, task: str, component: str, names: list[str]
) -> None:
    path = openvino_artifacts / task / "openvino" / "f16" / f"{component}.manifest.json"
    rewrites = read_manifest(ComponentManifest, path).rewrites
    assert [rewrite.name for rewrite in rewrites] == names
    for rewrite in rewrites:
        assert rewrite.sites > 0
        assert 0.0 <= rewrite.max_abs_error < 1e-2


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_unimodal"])
def test_only_the_row_that_is_read_is_computed(openvino_artifacts: Path, component: str) -> None:
    xml = openvino_artifacts / "itm" / "openvino" / "f16" / f"{component}.xml"
    products = {
        node.get_friendly_name(): node.output(0).get_partial_shape()
        for node in openvino.Core().read_model(xml).get_ordered_ops()
        if node.get_type_name() == "MatMul" and node.get_friendly_name().startswith("/layers.")
    }
    last = max(name.split("/")[1] for name in products)
    for name, shape in products.items():
        _, layer, *_, part, _ = name.split("/")
        rows = shape[-2]
        reads_all = part in ("key", "value") or "cross_key_value" in name
        if layer == last and not reads_all:
            assert rows.get_max_length() == 1, name
        elif not reads_all:
            assert rows.is_dynamic, name
            assert rows.get_max_length() != 1, name


def test_a_wrong_rewrite_is_refused(
    exported_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = private_pipeline(exported_artifacts, tmp_path, "caption", "text_decoder")
    original = ready_cross_keys.rewrite

    def unscaled(model: openvino.Model, net: Net) -> Rewritten:
        found = original(model, net)
        specs = tuple(
            replace(spec, layout=replace(spec.layout, scale=1.0)) if spec.layout else spec
            for spec in found.net.inputs
        )
        return Rewritten(found.sites, replace(found.net, inputs=specs))

    monkeypatch.setattr(ready_cross_keys, "rewrite", unscaled)
    job, source = pipeline.job("text_decoder", "openvino", "f16"), pipeline.source("text_decoder")
    backend = OpenVinoBackend(MemoryBudget(1))
    with pytest.raises(ParityError, match=r"rewrite ready_cross_keys.*differs"):
        backend.build(backend.plan(job, source), tmp_path)


def test_self_attention_and_its_cache_are_one_kernel(openvino_artifacts: Path) -> None:
    xml = openvino_artifacts / "caption" / "openvino" / "f16" / "text_decoder.xml"
    compiled = openvino.Core().compile_model(xml, "CPU")
    kinds = [
        op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ops()
    ]
    layers = read_task_manifest(openvino_artifacts / "caption" / "manifest.json").dimensions.layers
    assert kinds.count("ScaledDotProductAttention") == layers
    # Cross-attention's alone: no attention over the cache is left in parts.
    assert kinds.count("Softmax") == layers


def test_half_precision_weights_are_stored_once(openvino_artifacts: Path) -> None:
    decoder = openvino_artifacts / "caption" / "openvino" / "f16" / "text_decoder.bin"
    onnx = openvino_artifacts / "caption" / "onnx" / "text_decoder.onnx"
    # Two bytes for each float32 of the exported file, which holds the tied embedding once.
    assert decoder.stat().st_size <= onnx.stat().st_size / 2


def test_float32_ir_answers_as_the_exported_graph(exported_artifacts: Path, tmp_path: Path) -> None:
    pipeline = private_pipeline(exported_artifacts, tmp_path, "caption", "text_decoder")
    result = pipeline.run(
        "--target", "openvino", "--precision", "f32", "--component", "text_decoder"
    )
    assert result.returncode == 0, result.stderr
    job, source = pipeline.job("text_decoder", "openvino", "f32"), pipeline.source("text_decoder")
    net = read_manifest(ComponentManifest, job.location.manifest).nets[0]
    model = ContractModel(openvino.Core().read_model(job.location.file(".xml")), net)
    plain = session(source.onnx)
    names = [output.name for output in plain.get_outputs()]
    shapes = job.layout.pipeline.tasks["caption"].shapes
    for part in net_shapes("caption", "text_decoder", shapes, source.task.dimensions.image_tokens):
        inputs = random_inputs(source.manifest.nets[0].inputs, part.axes, source.task, seed=3)
        actual = model(inputs)
        for name, expected in zip(names, plain.run(names, inputs), strict=True):
            error = np.abs(actual[name] - expected).max() / np.abs(expected).max()
            assert error < 1e-4, (part.name, name)
