"""Integer IRs read back: folding of constants, distance in steps, silence on a clean set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from configs.tolerances import load_tolerances
from pipeline.command import select
from tests.faults.planted_faults import Fault, private_copy
from verify.artifacts import find_artifacts
from verify.layers.checks import exported_graph
from verify.layers.integer_ir import coarseness, folded, read_integer_ir


def test_integers_fold_to_their_values_and_steps() -> None:
    integers = ops.constant(np.array([[3, 5], [7, 250]], dtype=np.uint8))
    zero = ops.convert(ops.constant(np.array([[1, 50]], dtype=np.uint8)), "f32")
    scale = ops.constant(np.array([[0.5, 0.1]], dtype=np.float32))
    node = ops.multiply(ops.subtract(ops.convert(integers, "f32"), zero), scale)
    found = folded(ops.transpose(node, ops.constant(np.array([1, 0]))))
    assert found is not None
    assert np.allclose(found.value, [[1.0, 3.0], [-4.5, 20.0]])
    assert found.step is not None
    assert np.allclose(found.step, [[0.5, 0.5], [0.1, 0.1]])


@pytest.mark.parametrize(
    ("kind", "values"), [(openvino.Type.u4, [1, 15, 0, 8]), (openvino.Type.i4, [1, -1, 0, -8])]
)
def test_four_bits_come_in_the_order_the_device_reads(
    kind: openvino.Type, values: list[int]
) -> None:
    packed = openvino.op.Constant(kind, openvino.Shape([4]), values)
    found = folded(packed)
    assert found is not None
    assert found.value.tolist() == values
    model = openvino.Model([ops.convert(packed, "f32")], [], "four")
    compiled = openvino.Core().compile_model(model, "CPU")
    assert next(iter(compiled([]).values())).tolist() == values


def test_what_is_no_constant_does_not_fold() -> None:
    given = ops.parameter([2], np.float32)
    assert folded(ops.multiply(given, ops.constant(np.ones(2, dtype=np.float32)))) is None


def test_clean_weights_lie_within_half_a_step(openvino_artifacts: Path, tmp_path: Path) -> None:
    config = private_copy(
        openvino_artifacts, tmp_path, Fault("none", "caption", "openvino", "", precision="int8")
    )
    (task,) = find_artifacts(select(config))
    (target,) = task.targets
    for component in ("vision_encoder", "cross_key_values", "text_decoder"):
        graph = exported_graph(task.onnx.components[component])
        found = read_integer_ir(target.components[component], graph)
        assert found.faults == []
        assert found.steps
        assert 0.4 < max(found.steps.values()) <= load_tolerances().limit("integer_weight_steps")
    assert (
        len(
            read_integer_ir(
                target.components["vision_encoder"],
                exported_graph(task.onnx.components["vision_encoder"]),
            ).quantisers
        )
        > 20
    )


def test_a_step_is_measured_against_the_largest_weight_of_its_own_channel() -> None:
    weights = np.array([[1.27, -0.5], [0.0127, 0.01]])
    per_channel = np.array([[0.01], [0.0001]])
    per_tensor = np.array([[0.01], [0.01]])
    assert coarseness(weights, per_channel, 255, 0) == pytest.approx(1.0)
    assert coarseness(weights, per_tensor, 255, 0) == pytest.approx(100.0)


def test_neighbours_that_share_a_step_are_a_group() -> None:
    weights = np.array([[0.7, 0.1, 0.07, 0.01]])
    steps = np.array([[0.1, 0.1, 0.01, 0.01]])
    assert coarseness(weights, steps, 15, 0) == pytest.approx(1.0)
