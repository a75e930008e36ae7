"""Errors that layers introduce, float islands, and the command with what it leaves on the disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from tests.faults.planted_faults import all_faults, private_copy
from verify.__main__ import application
from verify.bisect.islands import islands
from verify.layers.graph import ExportedGraph, Runner, run
from verify.layers.introduced import LayerError, LayerErrors, difference, ranked

SCHEMA_KEYS = {"schema_version", "pipeline", "task", "target", "precision", "mode", "verdict"}


@pytest.fixture
def chain(tmp_path: Path) -> ExportedGraph:
    """x -> a = 2x -> b = a + 1 -> y = b * b."""
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["a"], name="/first/Mul"),
        helper.make_node("Add", ["a", "one"], ["b"], name="/second/Add"),
        helper.make_node("Mul", ["b", "b"], ["y"], name="/third/Mul"),
    ]
    values = {"two": 2.0, "one": 1.0}
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(np.float32(v), name) for name, v in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "chain.onnx")
    return ExportedGraph(tmp_path / "chain.onnx")


def test_error_is_laid_at_the_layer_that_makes_it(chain: ExportedGraph) -> None:
    x = np.array([[1.0, 2.0, 3.0]], dtype=np.float32)
    a = 2 * x
    b = a + 1.5  # the second layer is wrong
    y = b * b  # the third is right, on wrong inputs
    errors = LayerErrors(chain)
    errors.add({"x": x}, {"a": a, "b": b, "y": y})
    found = {error.tensor: error for error in errors.result()}
    assert found["a"].introduced == 0.0
    assert found["b"].introduced == pytest.approx(np.linalg.norm([0.5] * 3) / np.linalg.norm(a + 1))
    assert found["y"].introduced == pytest.approx(0.0, abs=1e-7)
    assert found["y"].accumulated > 0.1
    assert ranked(errors.result())[0].layer == "second"


def test_tensors_that_the_other_side_lacks_widen_the_stretch(chain: ExportedGraph) -> None:
    x = np.array([[1.0, 2.0, 3.0]], dtype=np.float32)
    errors = LayerErrors(chain)
    errors.add({"x": x}, {"y": (2 * x + 1.5) ** 2})
    (only,) = errors.result()
    assert only.tensor == "y"
    assert only.introduced > 0.1


def test_first_value_that_is_not_finite_is_the_guilty_one(chain: ExportedGraph) -> None:
    x = np.array([[1.0, 2.0, 3.0]], dtype=np.float32)
    b = np.array([[3.0, np.inf, 7.0]], dtype=np.float32)
    errors = LayerErrors(chain)
    errors.add({"x": x}, {"a": 2 * x, "b": b, "y": b * b})
    found = {error.tensor: error for error in errors.result()}
    assert math.isinf(found["b"].introduced)
    assert found["y"].introduced == 0.0


def test_parts_run_on_given_inputs_and_whole_graph_on_its_own(chain: ExportedGraph) -> None:
    x = np.ones((1, 3), dtype=np.float32)
    whole = run(chain.probed(["a"]), {"x": x})
    assert np.array_equal(whole["a"], 2 * x)
    parts = Runner(chain.cut(["a", "y"]))({"x": x, "a": 5 * x, "y": x})
    assert np.array_equal(parts["a@local"], 2 * x)
    assert np.array_equal(parts["y@local"], 36 * x)


def test_difference_of_shapes_and_zeros() -> None:
    ones = np.ones((2, 3))
    assert difference(ones, np.ones((3, 2))) == (math.inf, math.inf)
    assert difference(0 * ones, 0 * ones) == (0.0, 0.0)
    assert difference(0 * ones, ones) == (math.inf, math.inf)
    assert difference(ones, 1.1 * ones)[0] == pytest.approx(0.1)


def _error(name: str, introduced: float, operator: str = "MatMul") -> LayerError:
    return LayerError(
        name, name, f"/{name}/MatMul", operator, 0, introduced, introduced, introduced
    )


def test_islands_are_the_fewest_that_take_half_of_the_error_away() -> None:
    errors = [_error("a", 0.4), _error("b", 0.3), _error("c", 0.01), _error("d", 0.9, "Reshape")]
    names = [island.node for island in islands(errors)]
    assert names == ["/a/MatMul", "/b/MatMul"]
    assert [i.node for i in islands(errors, bound=0.35)] == ["/a/MatMul"]
    assert islands(errors, bound=0.35)[0].table_row() == "a_MatMul F16"
    assert islands([]) == ()


def test_command_names_the_layer_and_leaves_json_and_plots(
    openvino_artifacts: Path, tmp_path: Path
) -> None:
    (fault,) = [f for f in all_faults() if f.name == "IR: one layer's weights off by 1 %"]
    config = private_copy(openvino_artifacts, tmp_path, fault)
    fault.plant(tmp_path / "reference" / fault.task)
    options = ["--config", str(config), "--component", str(fault.component)]
    result = CliRunner().invoke(application, ["bisect", *options])
    assert result.exit_code == 1
    folder = tmp_path / "reference" / "bisect"
    record = json.loads((folder / "caption_openvino_f16_exact.json").read_text())
    assert record.keys() >= SCHEMA_KEYS
    assert record["verdict"]["part"] == "target"
    assert record["verdict"]["where"].endswith("layers.3.attention.value")
    part = next(c for c in record["components"] if c["comparison"] == "onnxruntime_vs_target")
    assert part["islands"]["nncf_ignored_scope"][0].startswith("/layers.3/attention/value/")
    wrong = [layer for layer in part["layers"] if layer["exceeds"]]
    assert {layer["layer"] for layer in wrong} == {"layers.3.attention.value"}
    for name in part["plots"]:
        assert (folder / name).stat().st_size > 5_000


def test_unknown_mode_and_target_are_refused(tmp_path: Path) -> None:
    for options in (["--mode", "slow"], ["--target", "openvino,onnx"], ["--target", "abacus"]):
        assert CliRunner().invoke(application, ["bisect", *options]).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_chip_is_looked_into_with_the_vendor_s_own_tools(reference_artifacts: Path) -> None:
    options = ["--task", "itm", "--component", "vision_projection", "--target", "bm1688"]
    result = CliRunner().invoke(application, ["bisect", *options])
    assert result.exit_code == 0, result.output
    record = json.loads((reference_artifacts / "bisect" / "itm_bm1688_f16.json").read_text())
    (part,) = [c for c in record["components"] if c["comparison"] == "onnxruntime_vs_target"]
    assert "--dump_all_tensors" in part["method"]
    found = {layer["tensor"]: layer for layer in part["layers"]}
    assert found["image_features"]["vendor_name"].startswith("image_features_")
    # Half precision: neither exact nor beyond the bound.
    assert 0.0 < found["image_features"]["accumulated"] < part["bound"]
    assert part["faults"] == []
