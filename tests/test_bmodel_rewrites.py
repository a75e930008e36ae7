"""Graph rewrites on small graphs: they change what they should, and nothing that is computed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compile.bmodel import prepare as preparing
from compile.bmodel.plan import Preparation
from compile.bmodel.rewrites import Lookup, Rewritten, check_names, names
from compile.bmodel.rewrites.host_embedding_lookup import rewrite as to_host
from compile.graphs.graph import externalise, input_specs, load_graph
from compile.graphs.parity import with_lookups
from compile.graphs.static_graph import fix_shapes, session
from configs.errors import ConfigError, ParityError
from tests.compile_private import private_pipeline

GENERATOR = np.random.default_rng(0)


def constant(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(GENERATOR.standard_normal(shape).astype(np.float32), name)


def value(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def saved(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    weights: list[TensorProto],
    output: onnx.ValueInfoProto,
) -> Path:
    """Writes a graph and its copy with external weights; returns the latter."""
    graph = helper.make_graph(nodes, "g", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save_model(model, folder / "source.onnx")
    externalise(folder / "source.onnx", folder / "plain.onnx", "weights.bin")
    return folder / "plain.onnx"


def operators(path: Path) -> list[str]:
    return [node.op_type for node in load_graph(path).graph.node]


def lookup_graph(folder: Path) -> Path:
    """Two tables read by the same ids (once through a Cast), a third by positions, and a Shape."""
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["a"]),
        helper.make_node("Cast", ["ids"], ["ids32"], to=TensorProto.INT32),
        helper.make_node("Gather", ["types", "ids32"], ["b"]),
        helper.make_node("Gather", ["places", "positions"], ["c"]),
        helper.make_node("Add", ["a", "b"], ["ab"]),
        helper.make_node("Add", ["ab", "c"], ["abc"]),
        helper.make_node("Shape", ["ids"], ["size"], start=-1),
        helper.make_node("Cast", ["size"], ["length"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["abc", "length"], ["y"]),
    ]
    return saved(
        folder,
        nodes,
        [
            value("ids", TensorProto.INT64, "batch", "tokens"),
            value("mask", TensorProto.FLOAT, "batch", 1),
            value("positions", TensorProto.INT64, "batch", "tokens"),
        ],
        [constant("words", 40, 16), constant("types", 40, 16), constant("places", 12, 16)],
        value("y", TensorProto.FLOAT, "batch", "tokens", 16),
    )


def test_lookups_by_graph_inputs_move_to_the_host(tmp_path: Path) -> None:
    plain = lookup_graph(tmp_path)
    model = load_graph(plain)
    result = to_host(model, tmp_path)
    onnx.save_model(model, tmp_path / "changed.onnx")
    assert result.sites == 3
    assert [(one.indices, one.input) for one in result.lookups] == [
        ("ids", "ids.embeddings"),
        ("ids", "ids.embeddings.1"),
        ("positions", "positions.embeddings"),
    ]
    assert "Gather" not in operators(tmp_path / "changed.onnx")
    shapes = {name: shape for name, (shape, _) in input_specs(model).items()}
    assert shapes == {
        "ids.embeddings": ("batch", "tokens", 16),
        "ids.embeddings.1": ("batch", "tokens", 16),
        "mask": ("batch", 1),
        "positions.embeddings": ("batch", "tokens", 16),
    }
    for batch, tokens in ((1, 1), (2, 7)):
        inputs = {
            "ids": GENERATOR.integers(0, 40, (batch, tokens)),
            "mask": np.zeros((batch, 1), np.float32),
            "positions": GENERATOR.integers(0, 12, (batch, tokens)),
        }
        (expected,) = session(plain).run(None, inputs)
        feeds = with_lookups(inputs, result.lookups)
        (actual,) = session(tmp_path / "changed.onnx").run(None, {n: feeds[n] for n in shapes})
        np.testing.assert_array_equal(actual, expected)


def test_ids_that_serve_elsewhere_stay_an_input(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["a"]),
        helper.make_node("Cast", ["ids"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["numbers", "last"], ["column"]),
        helper.make_node("Add", ["a", "column"], ["y"]),
    ]
    plain = saved(
        tmp_path,
        nodes,
        [value("ids", TensorProto.INT64, 1, 4)],
        [constant("words", 9, 8), numpy_helper.from_array(np.array([-1]), "last")],
        value("y", TensorProto.FLOAT, 1, 4, 8),
    )
    model = load_graph(plain)
    to_host(model, tmp_path)
    assert list(input_specs(model)) == ["ids.embeddings", "ids"]


def test_fixed_shapes_leave_no_shape_arithmetic(exported_artifacts: Path, tmp_path: Path) -> None:
    pipeline = private_pipeline(exported_artifacts, tmp_path, "caption", "text_decoder")
    source = pipeline.source("text_decoder")
    job = pipeline.job("text_decoder", "bm1684x")
    wanted = Preparation.of(job.layout, source, ())
    folder = tmp_path / "prepared"
    folder.mkdir()
    preparing.write_prepared(source, wanted.shapes, (), folder)
    record = preparing.read_prepared(folder)
    assert [net.name for net in record.nets] == ["first_pass", "step"]
    shapes = pipeline.shapes()
    assert record.nets[0].inputs["input_ids"] == (1, shapes["text_tokens"])
    assert record.nets[1].inputs["self_attention_mask"] == (1, 1, 1, shapes["past_tokens"] + 1)
    for net in record.nets:
        left = set(operators(folder / net.file))
        assert not left & {"Shape", "ConstantOfShape", "Constant", "Identity", "Where", "Range"}
    (fixed,) = record.rewrites
    assert fixed.sites > 0
    assert fixed.max_abs_error == 0.0


def test_constants_are_folded_for_any_operator(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("Shape", ["x"], ["size"], start=1, end=2),
        helper.make_node("Slice", ["wt", "zero", "size"], ["rows"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Add", ["same", "rows"], ["y"]),
    ]
    plain = saved(
        tmp_path,
        nodes,
        [value("x", TensorProto.FLOAT, "batch", "tokens", 300)],
        [constant("w", 300, 20), numpy_helper.from_array(np.array([0]), "zero")],
        value("y", TensorProto.FLOAT, "batch", "tokens", 300),
    )
    inputs = {"x": GENERATOR.standard_normal((1, 5, 300)).astype(np.float32)}
    assert fix_shapes(plain, inputs, tmp_path / "fixed.onnx") == 4
    assert operators(tmp_path / "fixed.onnx") == ["Add"]
    (expected,) = session(plain).run(None, inputs)
    (actual,) = session(tmp_path / "fixed.onnx").run(None, inputs)
    np.testing.assert_array_equal(actual, expected)


def wrong_table(model: onnx.ModelProto, folder: Path) -> Rewritten:
    """A host lookup whose table is off by a little."""
    result = to_host(model, folder)
    first, *others = result.lookups
    off = Lookup(first.indices, first.input, first.table * np.float32(1.01))
    return Rewritten(result.sites, (off, *others))


def test_a_rewrite_that_changes_results_is_refused(
    exported_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = private_pipeline(exported_artifacts, tmp_path, "itm", "text_encoder_unimodal")
    source = pipeline.source("text_encoder_unimodal")
    job = pipeline.job("text_encoder_unimodal", "bm1684")
    shapes = Preparation.of(job.layout, source, ()).shapes
    module = SimpleNamespace(REASON="a test", rewrite=wrong_table)
    monkeypatch.setattr(preparing, "load", lambda _name: module)
    folder = tmp_path / "prepared"
    folder.mkdir()
    with pytest.raises(ParityError, match=r"wrong: text_features differs from the plain graph"):
        preparing.write_prepared(source, shapes, ("wrong",), folder)


def test_an_unknown_rewrite_is_a_configuration_error() -> None:
    assert {"linear_as_convolution", "host_embedding_lookup"} <= set(names())
    with pytest.raises(ConfigError, match="unknown rewrite 'fold_everything'; choose from"):
        check_names(("fold_everything",), "configs/targets/new.yaml")
