"""Linear layers as 1 x 1 convolutions: the same values, in a layout that moves less."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compile.bmodel.integers.fake_quantization import FakeQuantized
from compile.bmodel.integers.mlir import parse_operations
from compile.bmodel.integers.search import role
from compile.bmodel.rewrites import linear_as_convolution, separate_attention
from compile.graphs.graph import (
    constants,
    externalise,
    load_graph,
    producers,
    store_weight,
    tensor_value,
    weights_bytes,
)
from compile.graphs.parity import PlainGraph, real_inputs
from compile.graphs.static_graph import session

GENERATOR = np.random.default_rng(0)


def converted(exported: Path, folder: Path, component: str) -> tuple[Path, Path, int]:
    """The plain graph and the converted one, beside the same weights; and how many layers."""
    plain = folder / "plain.onnx"
    externalise(exported / f"{component}.onnx", plain, "weights.bin")
    model = load_graph(plain)
    separate_attention.rewrite(model, folder)
    sites = linear_as_convolution.rewrite(model, folder).sites
    changed = folder / "changed.onnx"
    onnx.save_model(model, changed)
    return plain, changed, sites


@pytest.mark.parametrize(
    ("task", "component"),
    [
        ("caption", "vision_encoder"),
        ("caption", "cross_key_values"),
        ("caption", "text_decoder"),
        ("vqa", "text_encoder"),
        ("itm", "text_encoder"),
        ("itm", "text_encoder_unimodal"),
        ("itm", "vision_projection"),
    ],
)
def test_no_linear_layer_remains_a_product(
    exported_artifacts: Path, tmp_path: Path, task: str, component: str
) -> None:
    exported = exported_artifacts / task / "onnx"
    plain, changed, sites = converted(exported, tmp_path, component)
    model = load_graph(changed)
    known, made_by = constants(model), producers(model)
    assert sites > 0
    for node in model.graph.node:
        if node.op_type in {"MatMul", "Gemm"}:
            assert not any(name in known for name in node.input), node.name
        if node.op_type == "Softmax":
            # No operation on the scores but the mask: the scale went into the query's weights.
            before = made_by[node.input[0]]
            while before.op_type in {"Add", "Identity"}:
                before = made_by[before.input[0]]
            assert before.op_type == "MatMul"
            query = made_by[before.input[0]]
            assert query.op_type in {"Transpose", "Identity"}
    cases = list(real_inputs(exported / f"{component}.reference.npz"))
    assert cases
    assert PlainGraph(plain, cases).check(changed, "test") < 1e-3


def test_a_layer_of_a_vision_encoder_stays_in_channels(
    exported_artifacts: Path, tmp_path: Path
) -> None:
    _, changed, _ = converted(exported_artifacts / "itm" / "onnx", tmp_path, "vision_encoder")
    found = Counter(
        node.op_type for node in load_graph(changed).graph.node if "layers.1/" in node.output[0]
    )
    # Two norms to channels, query and value to heads, heads to channels, two sums from channels;
    # keys, and what lies between the two layers of the feed-forward part, are never reordered.
    assert (found["Conv"], found["Transpose"]) == (6, 7)


def linear_graph(folder: Path, inner: int, outer: int) -> Path:
    """Two linear layers with a square between them, over ``[batch, tokens, 8]``."""

    def weight(name: str, *shape: int) -> TensorProto:
        value = GENERATOR.standard_normal(shape).astype(np.float32)
        return numpy_helper.from_array(value, name)

    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"]),
        helper.make_node("Add", ["bias", "a"], ["b"]),
        helper.make_node("Mul", ["b", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "second"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["batch", "tokens", 8])],
        [value("y", TensorProto.FLOAT, ["batch", "tokens", outer])],
        [weight("first", 8, inner), weight("bias", inner), weight("second", inner, outer)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, folder / "source.onnx")
    externalise(folder / "source.onnx", folder / "plain.onnx", "weights.bin")
    return folder / "plain.onnx"


@pytest.mark.parametrize(("inner", "outer"), [(12, 9), (13, 23), (40, 10)])
def test_more_channels_than_an_operator_may_have_become_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: int, outer: int
) -> None:
    plain = linear_graph(tmp_path, inner, outer)
    monkeypatch.setattr(linear_as_convolution, "MAXIMUM_CHANNELS", 10)
    model = load_graph(plain)
    assert linear_as_convolution.rewrite(model, tmp_path).sites == 2
    onnx.save_model(model, tmp_path / "changed.onnx")
    for name, tensor in constants(model).items():
        assert len(tensor.dims) != 4 or max(tensor.dims[:2]) <= 10, name
    for shape in ((1, 1, 8), (3, 5, 8)):
        x = GENERATOR.standard_normal(shape).astype(np.float32)
        (expected,) = session(plain).run(None, {"x": x})
        (actual,) = session(tmp_path / "changed.onnx").run(None, {"x": x})
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_wide_input_that_comes_as_tokens_stays_a_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_graph(linear_graph(tmp_path, 4, 4))
    monkeypatch.setattr(linear_as_convolution, "MAXIMUM_CHANNELS", 7)
    assert linear_as_convolution.rewrite(model, tmp_path).sites == 1
    assert [node.op_type for node in model.graph.node][:2] == ["MatMul", "Add"]


def test_a_stored_weight_leaves_the_others_where_they_are(tmp_path: Path) -> None:
    plain = linear_graph(tmp_path, 64, 64)
    model = load_graph(plain)
    before = {name: tensor_value(one, tmp_path) for name, one in constants(model).items()}
    size = weights_bytes(model)
    added = GENERATOR.standard_normal((64, 64)).astype(np.float32)
    assert store_weight(model, tmp_path, "added", added) == "added"
    small = np.ones(3, dtype=np.float32)
    store_weight(model, tmp_path, "small", small)
    after = {name: tensor_value(one, tmp_path) for name, one in constants(model).items()}
    for name, value in (before | {"added": added, "small": small}).items():
        np.testing.assert_array_equal(after[name], value)
    assert weights_bytes(model) == size + added.nbytes


def test_a_convolution_of_one_pixel_is_searched_for_as_a_linear_layer() -> None:
    text = """%0 = "top.Input"() : () -> tensor<1x8x5x1xf32> loc(#loc1)
%1 = "top.Weight"() : () -> tensor<4x8xKERNELxf32> loc(#loc2)
%2 = "top.Conv"(%0, %1) : (tensor<1x8x5x1xf32>, tensor<4x8xKERNELxf32>) -> tensor<1x4x5x1xf32> \
loc(#loc3)
#loc1 = loc("x")
#loc2 = loc("w")
#loc3 = loc("/layers.3/attention/query/Add_output_0_channels_Conv")"""
    text = text.replace("\\\n", "")
    one = parse_operations(text.replace("KERNEL", "1x1").splitlines())[-1]
    assert role(one) == "linear layers.*/attention/query"
    patches = parse_operations(text.replace("KERNEL", "2x2").splitlines())[-1]
    assert role(patches) == "patch embedding"


@pytest.mark.parametrize("whole_shifts", [True, False])
def test_steps_of_a_convolutions_weights(tmp_path: Path, whole_shifts: bool) -> None:
    value = GENERATOR.standard_normal((6, 8, 1, 1)).astype(np.float32)
    value[2] *= 40.0
    tensor = numpy_helper.from_array(value, "w")
    maker = FakeQuantized(tmp_path / "none.onnx", [], {}, whole_shifts=whole_shifts)
    steps = maker.weight_steps(tensor, taken=3.0, made=70.0, convolution=True)
    largest = np.abs(value).max(axis=(1, 2, 3))
    assert steps.shape == (6,)
    levels = largest / steps
    assert np.all(levels <= 127.001)
    if whole_shifts:
        # Each channel's sums are shifted by a whole number of bits, so half of the range is used.
        shifts = np.log2(70.0 / 3.0 / steps)
        np.testing.assert_allclose(shifts, np.round(shifts), atol=1e-4)
        assert np.all(levels > 63.0)
    else:
        np.testing.assert_allclose(levels, 127.0, rtol=1e-5)


def test_parts_of_a_chain_come_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = linear_graph(tmp_path, 12, 9)
    model = load_graph(plain)
    square = next(node for node in model.graph.node if node.op_type == "Mul")
    half = numpy_helper.from_array(np.array(0.5, dtype=np.float32))
    added = [
        helper.make_node("Erf", ["c"], ["d"]),
        helper.make_node("Constant", [], ["half"], value=half),
        helper.make_node("Add", ["d", "half"], ["e"]),
    ]
    second = next(node for node in model.graph.node if "second" in node.input)
    second.input[0] = "e"
    for number, node in enumerate(added, start=list(model.graph.node).index(square) + 1):
        model.graph.node.insert(number, node)
    monkeypatch.setattr(linear_as_convolution, "MAXIMUM_CHANNELS", 10)
    linear_as_convolution.rewrite(model, tmp_path)
    names = [node.op_type for node in model.graph.node]
    first = names.index("Mul")
    assert names[first : first + 6] == ["Mul", "Erf", "Add"] * 2
