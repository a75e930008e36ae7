"""Calibration: examples, the search for what stays in float, tables, and a real INT8 BModel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compile.bmodel.integers.mlir import Operation, parse_operations
from compile.bmodel.integers.quantizer import Calibrated, quantized_net
from compile.bmodel.integers.search import float_operations, role, search, table_text
from compile.bmodel.integers.tables import expanded
from compile.bmodel.integers.thresholds import Range
from compile.calibration.examples import examples, examples_digest, images
from compile.calibration.inputs import net_inputs
from configs.errors import ConfigError, InputError
from configs.layout import Layout
from configs.load import load_pipeline
from configs.schema import TASK_COMPONENTS, CalibrationConfig, Task
from tests.compile_private import ROOT, private_pipeline


def operation(name: str, kind: str, *inputs: str, constant: bool = False) -> Operation:
    """An operation of 8 x 8 values."""
    shapes = tuple((8, 8) for _ in inputs)
    return Operation(
        name, kind, inputs, shapes, ("f32",) * len(inputs), (8, 8), "f32", (False, constant)
    )


NET = [
    operation("x", "Input"),
    operation("/layers.0/query/Add_output_0_Add", "MatMul", "x", "w", constant=True),
    operation("/layers.1/query/Add_output_0_Add", "MatMul", "x", "w", constant=True),
    operation("/layers.1/Reshape_output_0_Reshape", "Reshape", "/layers.1/query/Add_output_0_Add"),
    operation("/Softmax_output_0_Softmax", "Softmax", "/layers.1/Reshape_output_0_Reshape"),
]
LINEARS = frozenset(one.name for one in NET if one.kind == "MatMul")


def errors(costs: dict[str, float]):  # type: ignore[no-untyped-def]
    """A measurement in which every integer operation adds its own error."""

    def measure(wanted: dict[str, frozenset[str]]) -> dict[str, float]:
        return {n: sum(costs.get(one, 0.0) for one in ones) for n, ones in wanted.items()}

    return measure


def test_the_search_takes_what_fits_and_leaves_the_rest_in_float() -> None:
    costs = {"/Softmax_output_0_Softmax": 0.7} | dict.fromkeys(LINEARS, 0.01)
    plan = search(NET, errors(costs), 0.05)
    assert plan.integers == LINEARS
    assert plan.error == pytest.approx(0.02)
    assert plan.sensitivity[0].name == "Softmax"


def test_the_search_goes_down_to_layers_where_a_role_does_not_fit() -> None:
    first, second = sorted(LINEARS)
    plan = search(NET, errors({first: 0.01, second: 0.2, "/Softmax_output_0_Softmax": 0.7}), 0.05)
    assert plan.integers == {first}


def test_a_table_lists_floats_and_what_moves_their_data() -> None:
    assert "Reshape" not in table_text(NET, LINEARS, "F16")
    text = table_text(NET, frozenset(), "F16")
    assert text.count(" F16\n") == len(NET) - 1


def test_what_is_reordered_for_integers_alone_moves_as_integers() -> None:
    net = [
        operation("/norm_LayerNorm", "LayerNorm", "x"),
        operation("/norm.rows_Permute", "Permute", "/norm_LayerNorm"),
        operation("/norm.channels_Reshape", "Reshape", "/norm.rows_Permute"),
        operation("/query_Conv", "Conv", "/norm.channels_Reshape", "w", constant=True),
        operation("/slice_Slice", "Slice", "/norm_LayerNorm"),
        operation("/key_Conv", "Conv", "/slice_Slice", "w", constant=True),
        operation("/both_Permute", "Permute", "/norm_LayerNorm"),
        operation("/value_Conv", "Conv", "/both_Permute", "w", constant=True),
        operation("/sum_Add", "Add", "/both_Permute", "/norm_LayerNorm"),
    ]
    integers = frozenset({"/query_Conv", "/key_Conv", "/value_Conv"})
    floats = float_operations(net, integers)
    # A slice of integers is wrong on BM1684; what a float operation reads as well stays as it is.
    assert floats == ["/norm_LayerNorm", "/slice_Slice", "/both_Permute", "/sum_Add"]


def test_a_users_table_may_have_patterns_and_is_checked_against_the_net(tmp_path: Path) -> None:
    path = tmp_path / "a.quantize_table"
    path.write_text("# kept\n/layers.*/query/* F16\n/layers.1/query/* INT8\n")
    assert expanded(path, NET) == "/layers.0/query/Add_output_0_Add F16\n"
    path.write_text("/layers.7/* F16\n")
    with pytest.raises(ConfigError, match=r"line 1: /layers\.7/"):
        expanded(path, NET)
    path.write_text("/layers.1/* F17\n")
    with pytest.raises(ConfigError, match="choose from BF16, F16, F32, INT8"):
        expanded(path, NET)


def test_roles_do_not_depend_on_the_layer() -> None:
    assert role(NET[1]) == role(NET[2]) == "linear layers.*/query"


def test_operations_are_read_from_the_compilers_text() -> None:
    text = """#loc = loc(unknown)
    %0 = "top.None"() : () -> none loc(#loc)
    %1 = "top.Weight"() : () -> tensor<4x8xi8> loc(#loc1)
    %2 = "tpu.MatMul"(%9, %1, %0) {a = 1 : i64} : (tensor<2x4x!quant.uniform<i8:f32, 0.01>>, \
tensor<4x8xi8>, none) -> tensor<2x8x!quant.uniform<i8:f32, 0.02>> loc(#loc2)
#loc1 = loc("w")
#loc2 = loc("/y_Add")"""
    (one,) = parse_operations(text.splitlines())
    assert (one.name, one.kind, one.tensor) == ("/y_Add", "MatMul", "/y")
    assert one.constant[1]
    assert one.integer
    assert one.multiplications == 2 * 4 * 8


def test_multiplications_are_counted_before_weights_are_packed(tmp_path: Path) -> None:
    def module(shape: str) -> str:
        line = (
            '    %0 = "top.Weight"() : () -> tensor<SHAPExi8> loc(#loc1)\n'
            '    %1 = "tpu.Conv2D"(%9, %0) {a = 1 : i64} : '
            "(tensor<1x3x8x8x!quant.uniform<i8:f32, 0.01>>, tensor<SHAPExi8>) -> "
            "tensor<1x16x2x2x!quant.uniform<i8:f32, 0.02>> loc(#loc2)\n"
            '    %2 = "tpu.MatMul"(%9, %0) {a = 1 : i64} : '
            "(tensor<4x48xf16>, tensor<48x16xf16>) -> tensor<4x16xf16> loc(#loc3)\n"
        )
        return line.replace("SHAPE", shape) + '#loc1 = loc("w")\n#loc2 = loc("a")\n#loc3 = loc("b")'

    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "final.mlir").write_text(module("1x64x1x1664"))
    (tmp_path / "net_bm1684x_int8_sym_tpu.mlir").write_text(module("16x3x4x4"))
    made = Calibrated("", "", "", "search", 0.01)
    found = quantized_net(tmp_path, "net", made, "table", "thresholds")
    assert (found.integer_operations, found.float_operations) == (1, 1)
    # Both multiply 4 times 48 times 16 numbers.
    assert found.integer_share == 0.5


def test_a_threshold_clips_a_lonely_outlier_but_not_a_flat_range() -> None:
    flat, lonely = Range(), Range()
    flat.high = lonely.high = 10.0
    flat.histogram[:] = 10
    lonely.histogram[:200] = 100_000
    lonely.histogram[-1] = 1
    assert flat.threshold() > 9.8
    assert lonely.threshold() < 6.0


@pytest.mark.parametrize("task", ["caption", "vqa", "itm"])
def test_examples_are_seeded_and_never_held_out(task: Task) -> None:
    config = CalibrationConfig(samples=3)
    first = [(one.name, one.text) for one in examples(config, task)]
    assert first == [(one.name, one.text) for one in examples(config, task)]
    assert all("train" in name for name, _ in first)
    other = CalibrationConfig(samples=3, seed=1)
    assert first != [(one.name, one.text) for one in examples(other, task)]
    assert examples_digest(config, task) != examples_digest(other, task)


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    config = CalibrationConfig(source=str(tmp_path), samples=8)
    with pytest.raises(InputError, match="no images"):
        list(examples(config, "caption"))
    Image.new("L", (9, 7), 200).save(tmp_path / "a.png")
    assert [one.image.mode for one in examples(config, "caption")] == ["RGB"]
    with pytest.raises(InputError, match="columns image,question"):
        list(examples(config, "vqa"))
    (tmp_path / "questions.csv").write_text("image,question\na.png,what is it?\nb.png,why?\n")
    with pytest.raises(InputError, match=r"line 3: no image 'b\.png'"):
        list(examples(config, "vqa"))
    (tmp_path / "questions.csv").write_text("image,question\na.png,\n")
    assert [one.text for one in examples(config, "caption")] == [""]
    with pytest.raises(InputError, match="line 2: no question"):
        list(examples(config, "vqa"))
    (tmp_path / "questions.csv").write_text("image,question\na.png,what is it?\n")
    before = examples_digest(config, "vqa")
    assert [one.text for one in examples(config, "vqa")] == ["what is it?"]
    # As a spreadsheet saves it, with a byte order mark.
    (tmp_path / "questions.csv").write_text("\ufeffimage,question\na.png,where is it?\n")
    assert examples_digest(config, "vqa") != before
    assert [one.text for one in examples(config, "vqa")] == ["where is it?"]
    assert [one.size for one in images(config)] == [(9, 7)]
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(InputError, match=r"not a readable image.*a\.png"):
        list(images(config))


@pytest.mark.usefixtures("exported_artifacts")
def test_steps_are_calibrated_with_partly_filled_caches() -> None:
    layout = Layout(load_pipeline(ROOT / "configs" / "reference.yaml"))
    found = list(net_inputs(layout, "caption", CalibrationConfig(samples=4)))
    steps = [one.arrays for one in found if one.net == "step"]
    lengths = {int((one["self_attention_mask"][0, 0, 0, :-1] == 0).sum()) for one in steps}
    assert len(lengths) > 2
    # Behind an answer's end as well: thresholds from answers alone were 60 % off on the chip.
    assert 31 in lengths
    assert min(lengths) < 15
    for arrays in steps:
        used = int((arrays["self_attention_mask"][0, 0, 0, :-1] == 0).sum())
        assert int(arrays["position_ids"][0, 0]) == used
        assert np.abs(arrays["past.0.key"][0, :used]).sum(axis=(1, 2)).all()
        assert not arrays["past.0.key"][0, used:].any()


@pytest.mark.usefixtures("exported_artifacts")
@pytest.mark.parametrize("task", ["caption", "vqa", "itm"])
def test_a_components_inputs_do_not_depend_on_what_lies_behind_it(task: Task) -> None:
    layout = Layout(load_pipeline(ROOT / "configs" / "reference.yaml"))
    calibration = CalibrationConfig(samples=2)
    everything = list(net_inputs(layout, task, calibration))
    for component in TASK_COMPONENTS[task]:
        expected = [one for one in everything if one.component == component]
        alone = net_inputs(layout, task, calibration, last=component)
        found = [one for one in alone if one.component == component]
        assert len(found) == len(expected) >= 2
        for a, b in zip(found, expected, strict=True):
            assert a.net == b.net
            assert all(np.array_equal(a.arrays[name], b.arrays[name]) for name in b.arrays)


def test_an_int8_bmodel_from_search_to_edited_table(
    exported_artifacts: Path, tmp_path: Path
) -> None:
    pipeline = private_pipeline(exported_artifacts, tmp_path, "itm", "vision_projection")
    for other in ("vision_encoder", "text_encoder", "text_encoder_unimodal"):
        for file in (exported_artifacts / "itm" / "onnx").glob(f"{other}.*"):
            (pipeline.root / "itm" / "onnx" / file.name).symlink_to(file)
    (pipeline.root / "itm" / "processor").symlink_to(exported_artifacts / "itm" / "processor")
    pipeline.data["targets"] = {"bm1684": {"precisions": ["int8"]}}
    pipeline.data["calibration"] = {"samples": 4, "measured_samples": 2}
    pipeline.write()
    result = pipeline.run("--component", "vision_projection")
    assert result.returncode == 0, result.stderr
    (built,) = pipeline.manifests().values()
    assert built.quantization
    net = built.quantization.nets["main"]
    assert net.source == "search"
    assert net.integer_share > 0.9
    assert net.measured_error
    assert net.measured_error <= 0.05
    assert (built.quantization.source, built.quantization.samples) == ("scenes", 4)
    searched = list((pipeline.root / "work").glob("itm_vision_projection_bm1684_search.*.jsonl"))
    assert len(searched) == 1
    thresholds = next((pipeline.root / "itm").rglob(f"*{net.thresholds}"))
    assert thresholds.read_text().startswith("# op_name    threshold")
    records = [json.loads(line) for line in searched[0].read_text().splitlines()]
    # Killed in the middle of a line: measured ones are kept, the cut one is measured again.
    searched[0].write_text("".join(json.dumps(one) + "\n" for one in records[:2]) + '{"digest": "')
    assert pipeline.run("--component", "vision_projection", "--force").returncode == 0
    # The table beside the BModel, edited: everything back in float.
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "itm_vision_projection_bm1684.quantize_table").write_text("* F32\n")
    pipeline.data["targets"]["bm1684"]["quantize_tables"] = str(tables)
    pipeline.write()
    assert pipeline.run("--component", "vision_projection").returncode == 0
    (built,) = pipeline.manifests().values()
    assert built.quantization
    assert built.quantization.nets["main"].integer_share == 0.0
    assert built.quantization.nets["main"].source.endswith(".quantize_table")
    # A user's mistake is found before any work, and what was built stays.
    before = {path: path.read_bytes() for path in (pipeline.root / "itm" / "BM1684").iterdir()}
    table = tables / "itm_vision_projection_bm1684.quantize_table"
    table.write_text("* F32\n/no/such_MatMul F32\n")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(b"no image")
    (photos / "questions.csv").write_text("image,question\na.png,a ring\n")
    for message in ("line 2: /no/such_MatMul: no operation of this net", "not an image in a"):
        for arguments in (("--dry-run",), ()):
            result = pipeline.run("--component", "vision_projection", *arguments)
            assert result.returncode == 2
            assert message in result.stderr
            assert len(result.stderr.strip().splitlines()) == 1
        table.write_text("* f32\r\n")
        pipeline.data["calibration"] = {"source": str(photos), "samples": 1}
        pipeline.write()
    assert before == {path: path.read_bytes() for path in before}
