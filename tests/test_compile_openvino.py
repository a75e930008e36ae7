"""OpenVINO IR of the reference pipeline: names, dynamic shapes, size, answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest

from compile.parity import random_inputs
from compile.shapes import net_shapes
from compile.static_graph import session
from configs.layout import Layout
from configs.load import load_pipeline, load_target
from configs.manifest import ComponentManifest, read_manifest
from configs.schema import TASK_COMPONENTS
from tests.compile_private import private_pipeline

PIPELINE = load_pipeline(Path(__file__).resolve().parent.parent / "configs" / "reference.yaml")
LAYOUT = Layout(PIPELINE)
EVERY = [(t, c) for t in PIPELINE.tasks for c in TASK_COMPONENTS[t]]


@pytest.mark.parametrize(("task", "component"), EVERY)
def test_ir_keeps_names_and_dynamic_shapes(
    openvino_artifacts: Path,  # noqa: ARG001 - builds them
    task: str,
    component: str,
) -> None:
    location = LAYOUT.artifact(task, component, load_target("openvino"), "f16")  # type: ignore[arg-type]
    built = read_manifest(ComponentManifest, location.manifest)
    exported = read_manifest(ComponentManifest, LAYOUT.onnx(task, component).manifest)  # type: ignore[arg-type]
    model = openvino.Core().read_model(location.file(".xml"))
    (net,) = built.nets
    assert net.file == f"{component}.xml"
    for specs, ports, source in (
        (net.inputs, model.inputs, exported.nets[0].inputs),
        (net.outputs, model.outputs, exported.nets[0].outputs),
    ):
        assert [spec.name for spec in specs] == [spec.name for spec in source]
        assert {spec.artifact_name for spec in specs} == {port.any_name for port in ports}
        for spec in specs:
            port = next(p for p in ports if spec.artifact_name in p.get_names())
            dynamic = [isinstance(axis, str) for axis in spec.shape]
            assert [d.is_dynamic for d in port.get_partial_shape()] == dynamic
            assert "batch" in spec.shape


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
    model = openvino.Core().compile_model(
        job.location.file(".xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    plain = session(source.onnx)
    names = [output.name for output in plain.get_outputs()]
    shapes = job.layout.pipeline.tasks["caption"].shapes
    for net in net_shapes("caption", "text_decoder", shapes, source.task.dimensions.image_tokens):
        inputs = random_inputs(source.manifest.nets[0].inputs, net.axes, source.task, seed=3)
        actual = model(inputs)
        for name, expected in zip(names, plain.run(names, inputs), strict=True):
            error = np.abs(actual[name] - expected).max() / np.abs(expected).max()
            assert error < 1e-4, (net.name, name)
