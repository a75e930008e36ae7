"""Attention on chips: what the compiler must fuse, the masks it needs, and the way out of it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from compile.bmodel.build import check_fusions
from compile.bmodel.plan import rewrites_of
from compile.bmodel.rewrites import expand_attention_masks, separate_attention
from compile.graphs.graph import externalise, load_graph, producers
from compile.graphs.parity import PlainGraph, real_inputs
from configs.errors import ConfigError, ToolError
from configs.layout import Layout
from configs.load import load_pipeline, load_target
from pipeline.command import select
from pipeline.manifest import ComponentManifest, read_manifest
from tests.compile_private import PrivatePipeline, private_pipeline

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def decoder(exported_artifacts: Path, tmp_path: Path) -> PrivatePipeline:
    return private_pipeline(exported_artifacts, tmp_path, "caption", "text_decoder")


def rewritten(exported: Path, folder: Path, name: str, module) -> tuple[int, Path, Path]:
    plain = folder / "plain.onnx"
    externalise(exported / f"{name}.onnx", plain, "weights.bin")
    model = load_graph(plain)
    result = module.rewrite(model, folder)
    changed = folder / "changed.onnx"
    onnx.save_model(model, changed)
    return result.sites, plain, changed


def test_opting_out_moves_every_scale_to_the_query(
    exported_artifacts: Path, tmp_path: Path
) -> None:
    onnx_folder = exported_artifacts / "caption" / "onnx"
    sites, plain, changed = rewritten(onnx_folder, tmp_path, "text_decoder", separate_attention)
    model = load_graph(changed)
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    assert sites == len(softmaxes) > 0
    made_by = producers(model)
    for node in softmaxes:
        before = made_by[node.input[0]]
        inputs = before.input if before.op_type == "Add" else [node.input[0]]
        assert all(made_by[n].op_type != "Mul" for n in inputs if n in made_by)
    cases = list(real_inputs(onnx_folder / "text_decoder.reference.npz"))
    assert cases
    assert PlainGraph(plain, cases).check(changed, "test") < 1e-3


def test_padding_masks_get_a_row_per_query(exported_artifacts: Path, tmp_path: Path) -> None:
    onnx_folder = exported_artifacts / "itm" / "onnx"
    sites, plain, changed = rewritten(onnx_folder, tmp_path, "text_encoder", expand_attention_masks)
    assert sites == 1
    cases = list(real_inputs(onnx_folder / "text_encoder.reference.npz"))
    assert PlainGraph(plain, cases).check(changed, "test") == 0.0


def test_graphs_without_padding_masks_stay_as_they_are(
    exported_artifacts: Path, tmp_path: Path
) -> None:
    onnx_folder = exported_artifacts / "caption" / "onnx"
    sites, _, _ = rewritten(onnx_folder, tmp_path, "text_decoder", expand_attention_masks)
    assert sites == 0


@pytest.mark.usefixtures("reference_artifacts")
def test_a_text_encoder_s_masks_are_expanded_for_bm1688_only() -> None:
    layout = Layout(load_pipeline(ROOT / "configs" / "reference.yaml"))
    sites = {}
    for chip in ("bm1684x", "bm1688"):
        location = layout.artifact("itm", "text_encoder", load_target(chip), "f16")
        built = read_manifest(ComponentManifest, location.manifest)
        sites[chip] = {rewrite.name: rewrite.sites for rewrite in built.rewrites}
    assert sites["bm1688"]["expand_attention_masks"] == 1
    assert "expand_attention_masks" not in sites["bm1684x"]


@pytest.mark.parametrize(("fused", "fails"), [(24, False), (12, True), (0, True), (25, True)])
def test_every_attention_must_be_fused(decoder: PrivatePipeline, fused: int, fails: bool) -> None:
    job = decoder.job("text_decoder", "bm1688", "f16")
    made = {"MatMul2FAttention": fused} if fused else {}
    if not fails:
        check_fusions(job, "step", 24, made)
        return
    with pytest.raises(ToolError, match=r"24 expected.*attention_fusion: recorded"):
        check_fusions(job, "step", 24, made)


def test_float32_has_no_fusion_to_ask_for(decoder: PrivatePipeline) -> None:
    check_fusions(decoder.job("text_decoder", "bm1688", "f32"), "step", 24, {})


@pytest.mark.parametrize(("choice", "made"), [("recorded", 7), ("off", 0)])
def test_the_pipeline_file_opts_out(decoder: PrivatePipeline, choice: str, made: int) -> None:
    decoder.data["targets"]["bm1688"]["attention_fusion"] = choice
    decoder.write()
    job = decoder.job("text_decoder", "bm1688", "f16")
    check_fusions(job, "step", 24, {"MatMul2FAttention": made} if made else {})
    assert ("separate_attention" in rewrites_of(job)) == (choice == "off")
    if choice == "off":
        with pytest.raises(ToolError, match="0 expected"):
            check_fusions(job, "step", 24, {"MatMul2FAttention": 1})


def test_cores_come_from_the_pipeline_file(decoder: PrivatePipeline) -> None:
    decoder.data["targets"]["bm1688"]["cores"] = 2
    decoder.write()
    job = decoder.job("text_decoder", "bm1688", "f16")
    assert job.target.cores == 2
    assert job.location.stem.endswith("_2core")
    for chip, cores in (("bm1688", 3), ("bm1684x", 2)):
        decoder.data["targets"][chip]["cores"] = cores
        decoder.write()
        with pytest.raises(ConfigError, match=rf"targets\.{chip}\.cores: {cores} given"):
            select(decoder.config)
        decoder.data["targets"][chip].pop("cores")


def test_another_number_of_cores_replaces_an_artifact(
    exported_artifacts: Path, tmp_path: Path
) -> None:
    pipeline = private_pipeline(exported_artifacts, tmp_path, "itm", "vision_projection")
    for cores in (1, 2):
        pipeline.data["targets"]["bm1688"]["cores"] = cores
        pipeline.write()
        result = pipeline.run("--component", "vision_projection", "--target", "bm1688")
        assert result.returncode == 0, result.stderr
        (manifest,) = pipeline.manifests()
        assert ("_2core." in manifest) == (cores == 2)
