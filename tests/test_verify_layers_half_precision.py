"""The exported graph with an IR's half-precision numbers, and heads with weights of their own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.files.nets import TensorLayout
from verify.layers.checks import exported_constants
from verify.layers.graph import ExportedGraph, run
from verify.layers.half_precision_ir import half_precision_graph

SIZE = 48
SCALE = np.float32(1 / np.sqrt(SIZE))


def keys(folder: Path) -> ExportedGraph:
    """Scaled products of a linear layer, and that layer's own result as a key."""
    values = np.random.default_rng(0)
    weight = values.standard_normal((SIZE, SIZE)).astype(np.float32)
    bias = values.standard_normal(SIZE).astype(np.float32)
    shape = [1, 4, SIZE]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["states", "weight"], ["product"], name="product"),
            helper.make_node("Add", ["product", "bias"], ["cross.0.key"], name="key"),
            # Named as torch's exporter names them.
            helper.make_node(
                "Constant",
                [],
                ["scale_output_0"],
                name="scale",
                value=numpy_helper.from_array(SCALE),
            ),
            helper.make_node("Mul", ["cross.0.key", "scale_output_0"], ["scores"], name="scores"),
        ],
        "keys",
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name in ("cross.0.key", "scores")
        ],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "keys.onnx")
    return ExportedGraph(folder / "keys.onnx")


def manifest(folder: Path, scale: float) -> SimpleNamespace:
    layout = TensorLayout(order=(0, 1, 2), scale=scale)
    outputs = [SimpleNamespace(name="cross.0.key", layout=layout)]
    return SimpleNamespace(folder=folder, nets=[SimpleNamespace(file="ir.xml", outputs=outputs)])


def save_ir(graph: ExportedGraph, folder: Path, kept: tuple[str, ...]) -> None:
    """All constants in half precision, but those ``kept``."""
    model = openvino.Core().read_model(str(graph.path))
    for operation in model.get_ops():
        if operation.get_type_name() == "Constant" and operation.get_friendly_name() not in kept:
            half = openvino.opset13.constant(operation.data.astype(np.float16))
            half.set_friendly_name(f"{operation.get_friendly_name()}_compressed")
            single = openvino.opset13.convert(half, "f32")
            for target in operation.output(0).get_target_inputs():
                target.replace_source_output(single.output(0))
    openvino.save_model(model, folder / "ir.xml", compress_to_fp16=False)


def rounded(array: np.ndarray, factor: float = 1.0) -> np.ndarray:
    return (array * np.float32(factor)).astype(np.float16).astype(np.float32) / np.float32(factor)


@pytest.mark.parametrize("kept", [("scale",), ()])
def test_single_factors_are_rounded_only_where_the_ir_rounds_them(
    tmp_path: Path, kept: tuple[str, ...]
) -> None:
    graph = keys(tmp_path)
    save_ir(graph, tmp_path, kept)
    model = half_precision_graph(manifest(tmp_path, 1.0), graph)  # type: ignore[arg-type]
    states = np.random.default_rng(1).standard_normal((1, 4, SIZE)).astype(np.float32)
    found = run(model.SerializeToString(), {"states": states})
    weight, bias = (numpy_helper.to_array(graph.initializers[name]) for name in ("weight", "bias"))
    key = states @ rounded(weight) + rounded(bias)
    np.testing.assert_allclose(found["cross.0.key"], key, rtol=0, atol=1e-5)
    scale = SCALE if kept else np.float32(np.float16(SCALE))
    np.testing.assert_allclose(found["scores"], found["cross.0.key"] * scale, rtol=1e-6)


def test_factors_that_the_ir_moved_are_in_the_weights_before_they_are_rounded(
    tmp_path: Path,
) -> None:
    graph = keys(tmp_path)
    save_ir(graph, tmp_path, ("scale",))
    model = half_precision_graph(manifest(tmp_path, float(SCALE)), graph)  # type: ignore[arg-type]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name in ("weight", "bias"):
        exact = numpy_helper.to_array(graph.initializers[name])
        np.testing.assert_array_equal(stored[name], rounded(exact, float(SCALE)))
        assert np.any(stored[name] != rounded(exact))


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_compared_with_its_own_weights(tied: bool) -> None:
    values = np.random.default_rng(2)
    embeddings, head = (values.standard_normal((7, 5)).astype(np.float32) for _ in range(2))
    parameters = {
        "text_decoder.bert.embeddings.word_embeddings.weight": embeddings,
        "text_decoder.cls.predictions.decoder.weight": embeddings if tied else head,
    }
    checkpoint = SimpleNamespace(parameters=parameters, layers=lambda _: 1)

    def faults(constants: dict[str, np.ndarray]) -> list[tuple[str, str]]:
        tensors = {name: numpy_helper.from_array(array) for name, array in constants.items()}
        graph = SimpleNamespace(initializers=tensors)
        return list(exported_constants(graph, "text_decoder", "caption", checkpoint))  # type: ignore[arg-type]

    own = {} if tied else {"head.weight": head}
    assert faults({"embeddings.tokens": embeddings, **own}) == []
    # A head that was tied though the checkpoint's is not, or holds other weights.
    wrong = {"embeddings.tokens": head} if tied else {"embeddings.tokens": embeddings}
    assert "predictions.decoder.weight" in str(faults(wrong))
    assert faults({"embeddings.tokens": embeddings, "head.weight": head + 1})[0][0] == "head.weight"
