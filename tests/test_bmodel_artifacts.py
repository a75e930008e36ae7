"""BModels of the reference pipeline, made by the real TPU-MLIR, and what their manifests say."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from compile.bmodel.info import ArtifactNet, ArtifactTensor, match_outputs, parse_info
from configs.errors import ToolError
from configs.layout import Layout
from configs.load import load_pipeline, load_target
from configs.schema import TASK_COMPONENTS
from pipeline.build import files_match
from pipeline.manifest import ComponentManifest, TaskManifest, read_manifest

PIPELINE = load_pipeline(Path(__file__).resolve().parent.parent / "configs" / "reference.yaml")
LAYOUT = Layout(PIPELINE)
CHIPS = {"bm1684": "f32", "bm1684x": "f16", "bm1688": "f16"}
EVERY = [
    (chip, task, component)
    for chip in CHIPS
    for task in PIPELINE.tasks
    for component in TASK_COMPONENTS[task]
]
DECODERS = [(task, chip) for task in ("caption", "vqa") for chip in CHIPS]


@pytest.fixture(autouse=True)
def _built(reference_artifacts: Path) -> None:
    """Everything here reads the finished reference pipeline."""


def manifest(chip: str, task: str, component: str) -> tuple[Path, ComponentManifest]:
    location = LAYOUT.artifact(task, component, load_target(chip), CHIPS[chip])  # type: ignore[arg-type]
    return location.folder, read_manifest(ComponentManifest, location.manifest)


def sizes(task: str) -> dict[str, int]:
    dimensions = read_manifest(TaskManifest, LAYOUT.task_manifest(task)).dimensions  # type: ignore[arg-type]
    return asdict(dimensions)


@pytest.mark.parametrize(("chip", "task", "component"), EVERY)
def test_every_component_has_a_complete_artifact(chip: str, task: str, component: str) -> None:
    folder, built = manifest(chip, task, component)
    assert (built.target, built.precision) == (chip, CHIPS[chip])
    assert files_match(folder, built.files)
    assert built.device_memory_bytes
    assert built.device_memory_bytes > 0
    assert built.tools["tpu_mlir"]
    assert {command[0] for command in built.commands} <= {
        "model_transform.py",
        "model_deploy.py",
        "model_tool",
    }
    exported = read_manifest(ComponentManifest, LAYOUT.onnx(task, component).manifest)  # type: ignore[arg-type]
    for net in built.nets:
        assert net.file in built.files
        assert [o.name for o in net.outputs] == [o.name for o in exported.nets[0].outputs]
        fed = {lookup.input: lookup.indices for lookup in net.host_lookups}
        assert [fed.get(i.name, i.name) for i in net.inputs] == [
            i.name for i in exported.nets[0].inputs
        ]
        assert all(isinstance(n, int) for t in (*net.inputs, *net.outputs) for n in t.shape)
    assert all(rewrite.max_abs_error < 1e-3 for rewrite in built.rewrites)


@pytest.mark.parametrize(("task", "chip"), DECODERS)
def test_decoder_nets_have_their_lengths(task: str, chip: str) -> None:
    _, built = manifest(chip, task, "text_decoder")
    shapes, dimensions = PIPELINE.tasks[task].shapes, sizes(task)  # type: ignore[index]
    assert shapes.past_tokens is not None
    lengths = {"first_pass": shapes.text_tokens, "step": 1}
    assert [net.name for net in built.nets] == (
        ["first_pass", "step"] if task == "caption" else ["step"]
    )
    heads = (dimensions["heads"], dimensions["head_size"])
    encoder = dimensions["image_tokens"] if task == "caption" else shapes.text_tokens
    for net in built.nets:
        text = lengths[net.name]
        found = {t.name: t.shape for t in (*net.inputs, *net.outputs)}
        assert found["self_attention_mask"] == (1, 1, text, shapes.past_tokens + text)
        assert found["past.0.key"] == (1, shapes.past_tokens, *heads)
        assert found["cross.0.value"] == (1, encoder, *heads)
        assert found["new.0.key"] == (1, text, *heads)
        assert len(found["logits"]) == 2


@pytest.mark.parametrize("chip", CHIPS)
def test_chips_take_rows_of_the_embedding_tables(chip: str) -> None:
    kept = "float32" if CHIPS[chip] == "f32" else "float16"
    folder, built = manifest(chip, "caption", "text_decoder")
    for net in built.nets:
        dtypes = {tensor.name: tensor.dtype for tensor in net.inputs}
        assert {lookup.indices for lookup in net.host_lookups} == {"input_ids", "position_ids"}
        for lookup in net.host_lookups:
            table = np.load(folder / lookup.table)
            assert table.dtype == kept
            assert table.shape[1] == next(i.shape[-1] for i in net.inputs if i.name == lookup.input)
            assert dtypes[lookup.input] == kept


@pytest.mark.parametrize("chip", ["bm1684x", "bm1688"])
def test_no_cast_is_left_at_the_borders_of_a_half_precision_net(chip: str) -> None:
    for task in ("caption", "vqa"):
        for component in ("cross_key_values", "text_decoder"):
            _, built = manifest(chip, task, component)
            for net in built.nets:
                assert {tensor.dtype for tensor in (*net.inputs, *net.outputs)} == {"float16"}


@pytest.mark.parametrize("chip", ["bm1684x", "bm1688"])
def test_combined_decoder_nets_share_their_weights(chip: str) -> None:
    _, built = manifest(chip, "caption", "text_decoder")
    _, single = manifest(chip, "vqa", "text_decoder")
    assert len({net.file for net in built.nets}) == 1
    assert len({net.artifact_net for net in built.nets}) == 2
    (both,) = (record for name, record in built.files.items() if name.endswith(".bmodel"))
    (one,) = (record for name, record in single.files.items() if name.endswith(".bmodel"))
    # A second net costs instructions; a second copy of the weights would cost a megabyte more.
    weights = LAYOUT.onnx("caption", "text_decoder").file(".onnx").stat().st_size // 2
    assert both.size_bytes - one.size_bytes < weights // 4


def test_bm1684_keeps_one_file_per_net() -> None:
    _, built = manifest("bm1684", "caption", "text_decoder")
    assert [net.file for net in built.nets] == [
        "caption_text_decoder_bm1684_f32_1b_first_pass.bmodel",
        "caption_text_decoder_bm1684_f32_1b_step.bmodel",
    ]


@pytest.mark.parametrize("chip", CHIPS)
def test_estimates_come_from_the_compiler_or_are_missing(chip: str) -> None:
    for task, component in (("caption", "vision_encoder"), ("caption", "text_decoder")):
        _, built = manifest(chip, task, component)
        for net in built.nets:
            if chip == "bm1684":
                assert net.estimate is None
            else:
                assert net.estimate is not None
                assert 0 < net.estimate.latency_ms < 10
                assert "compiler_profile_0.txt" in net.estimate.source


@pytest.mark.parametrize("chip", ["bm1684x", "bm1688"])
def test_every_attention_is_fused(chip: str) -> None:
    for task in PIPELINE.tasks:
        layers = sizes(task)["layers"]
        for component, per_layer in (
            *(("text_decoder", 2), ("text_encoder", 2), ("text_encoder_unimodal", 1)),
            *(("cross_key_values", 0), ("vision_projection", 0)),
        ):
            if component not in TASK_COMPONENTS[task]:
                continue
            _, built = manifest(chip, task, component)
            for net in built.nets:
                assert sum(net.fusions.values()) == per_layer * layers, (task, component)
        _, built = manifest(chip, task, "vision_encoder")
        assert sum(built.nets[0].fusions.values()) >= layers


def test_rewrites_are_named_only_where_the_chip_needs_them() -> None:
    _, plain = manifest("bm1684x", "caption", "text_decoder")
    _, rewritten = manifest("bm1684", "caption", "text_decoder")
    assert [rewrite.name for rewrite in plain.rewrites] == ["host_embedding_lookup", "fix_shapes"]
    named = {rewrite.name: rewrite for rewrite in rewritten.rewrites}
    assert list(named) == [*load_target("bm1684").rewrites, "fix_shapes"]
    assert named["host_embedding_lookup"].sites == 2


def test_chips_share_the_mlir_of_a_graph_that_needs_no_rewrite() -> None:
    transforms = {manifest(chip, "caption", "cross_key_values")[1].commands[0] for chip in CHIPS}
    assert len(transforms) == 1
    of_decoders = {manifest(chip, "caption", "text_decoder")[1].commands[0] for chip in CHIPS}
    assert len(of_decoders) == 1


INFO = """bmodel version: B.2.2+v1.30.2-20260831
chip: BM1684X
==========================================
net 0: [text_decoder_step]  {kind}
------------
stage 0, core num: 1
input: input_ids, [1, 1], int32, scale: 1, zero_point: 0
output: logits_Gemm_f32, [1, 199], float32, scale: 1, zero_point: 0

device mem size: 2560000 (weight: 1843200, instruct: 159744, runtime: 557056)
"""


def test_info_is_read_or_refused() -> None:
    info = parse_info(INFO.format(kind="static").splitlines(), "x.bmodel")
    assert info.device_memory_bytes == 2560000
    ((net,),) = info.nets.values()
    assert net.inputs == (ArtifactTensor("input_ids", (1, 1), "int32"),)
    with pytest.raises(ToolError, match="became dynamic"):
        parse_info(INFO.format(kind="dynamic").splitlines(), "x.bmodel")
    with pytest.raises(ToolError, match="printed no nets"):
        parse_info((), "x.bmodel")


def test_outputs_are_never_guessed() -> None:
    made = (ArtifactTensor("a_Gemm_f32", (1, 3), "float32"), ArtifactTensor("b", (1, 3), "float32"))
    net = ArtifactNet("n", (), made)
    matched = match_outputs({"a": (1, 3), "b": (1, 3)}, net, "x.bmodel")
    assert [(t.name, t.artifact_name) for t in matched] == [("a", "a_Gemm_f32"), ("b", "b")]
    for expected in ({"b": (1, 3), "a": (1, 3)}, {"a": (1, 4), "b": (1, 3)}, {"a": (1, 3)}):
        with pytest.raises(ToolError, match="has outputs"):
            match_outputs(expected, net, "x.bmodel")
