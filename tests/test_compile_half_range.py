"""Weights and activations at the ends of half precision: kept, counted, warned about or refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from safetensors.torch import load_file, save_file

from compile.backend import Job, Source
from compile.graphs.half_range import LARGEST_HALF, beyond_half
from compile.ir.backend import OpenVinoBackend
from compile.ir.constants import check_constants
from compile.ir.model import read_graph
from configs.errors import ConfigError, ToolError
from pipeline.manifest import ComponentManifest, read_manifest
from pipeline.tpu_tools.process import MemoryBudget, VendorTools
from tests.compile_private import PrivatePipeline, private_pipeline
from tests.conftest import run_stage
from tests.export_checkpoints import write_pipeline

ROOT = Path(__file__).resolve().parent.parent
LAYERS = "vision_model.encoder.layers"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> PrivatePipeline:
    """The vision encoder of a checkpoint at both ends of half precision, and a pipeline file.

    One layer's matrix is near zero, as pruned or freshly initialised layers are. What is between
    another one's two matrices is beyond half precision; what comes out of them is as it was.
    """
    folder = tmp_path_factory.mktemp("odd")
    checkpoint = folder / "checkpoint"
    shutil.copytree(ROOT / "models/checkpoints/reference-caption", checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    weights[f"{LAYERS}.2.mlp.fc2.weight"] *= 1e-7
    for part in ("weight", "bias"):
        weights[f"{LAYERS}.1.mlp.fc1.{part}"][:8] *= 3e4
    weights[f"{LAYERS}.1.mlp.fc2.weight"][:, :8] /= 3e4
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    config = write_pipeline(folder, {"caption": checkpoint})
    result = run_stage("export", "--config", str(config))
    assert result.returncode == 0, result.stderr
    root = folder / "artifacts" / "test"
    components = ("vision_encoder", "cross_key_values")
    return private_pipeline(root, folder / "private", "caption", *components)


def job(pipeline: PrivatePipeline, target: str, precision: str) -> tuple[Job, Source]:
    return (
        pipeline.job("vision_encoder", target, precision),
        pipeline.source("vision_encoder"),
    )


def test_odd_weights_make_an_ir_and_a_warning(odd: PrivatePipeline) -> None:
    result = odd.run("--target", "openvino", "--component", "vision_encoder")
    assert result.returncode == 0, result.stderr
    said = result.stdout + result.stderr
    assert "warning: caption/vision_encoder openvino f16: layers.1.feed_forward" in said
    assert "f16 ends at 65504" in said
    path = job(odd, "openvino", "f16")[0].location.manifest
    kept = {one.name: one for one in read_manifest(ComponentManifest, path).nets[0].kept_in_float32}
    assert set(kept) == {"layers.1.feed_forward.inner.weight", "layers.2.feed_forward.outer.weight"}
    small, large = (
        kept["layers.2.feed_forward.outer.weight"],
        kept["layers.1.feed_forward.inner.weight"],
    )
    assert small.values == large.values == 128 * 512
    assert small.lost > 0.7
    assert small.largest < 1e-6
    assert large.largest > 2048.0


def saved(model: openvino.Model, path: Path, **options: Any) -> openvino.Model:
    openvino.save_model(model, path, **options)
    return openvino.Core().read_model(path)


def test_weights_stored_twice_missing_or_in_float32_are_refused(
    exported_artifacts: Path, tmp_path: Path
) -> None:
    pipeline = private_pipeline(exported_artifacts, tmp_path, "caption", "text_decoder")
    one, source = pipeline.job("text_decoder", "openvino", "f16"), pipeline.source("text_decoder")
    plan = OpenVinoBackend(MemoryBudget(1)).plan(one, source)

    def check(model: openvino.Model, **options: Any) -> None:
        check_constants(saved(model, tmp_path / "ir.xml", **options), plan, "ir.xml")

    check(read_graph(source.onnx), compress_to_fp16=True)
    with pytest.raises(ToolError, match="is stored in float32, though half precision holds"):
        check(read_graph(source.onnx), compress_to_fp16=False)
    double = read_graph(source.onnx)
    table = next(
        op
        for op in double.get_ops()
        if op.get_type_name() == "Constant" and list(op.shape) == [199, 128]
    )
    # Equal content would share its place in the file.
    copied = openvino.opset13.constant(np.asarray(table.data) + np.float32(1.0))
    reader = next(iter(table.output(0).get_target_inputs()))
    reader.replace_source_output(copied.output(0))
    with pytest.raises(ToolError, match="weights stored twice"):
        check(double, compress_to_fp16=True)
    plan = replace(plan, included=(source,))
    with pytest.raises(ToolError, match=r"holds .* of .* exported weights"):
        check(read_graph(source.onnx), compress_to_fp16=True)


@pytest.mark.parametrize(("precision", "cure"), [("f16", "bf16"), ("w8f16", "w8bf16")])
def test_what_half_precision_cannot_hold_is_refused_without_a_simulator(
    odd: PrivatePipeline, tmp_path: Path, precision: str, cure: str
) -> None:
    from compile.bmodel.backend import SophonBackend

    backend = SophonBackend(MemoryBudget(8 << 30), VendorTools())
    plan = backend.plan(*job(odd, "bm1684x", precision))
    with pytest.raises(ConfigError) as caught:
        backend.build(plan, tmp_path)
    message = str(caught.value)
    assert "layers.1.feed_forward" in message
    assert f"build {cure} (targets.bm1684x.precisions)" in message


def test_other_arithmetic_and_ordinary_activations_pass(
    odd: PrivatePipeline, exported_artifacts: Path, tmp_path: Path
) -> None:
    assert beyond_half(*job(odd, "bm1684x", "bf16")) is None
    assert beyond_half(*job(odd, "bm1684", "f32")) is None
    usual = private_pipeline(exported_artifacts, tmp_path, "caption", "vision_encoder")
    assert beyond_half(*job(usual, "bm1684x", "f16")) is None
    assert float(np.finfo(np.float16).max) == LARGEST_HALF
