"""Graphs of the reference pipeline are those that were reviewed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper
from openvino import opset13 as opset

from configs.layout import CONFIGS_FOLDER
from scripts.golden_graphs import FOLDER, differences, ir_lines, main, onnx_lines


@pytest.mark.usefixtures("reference_artifacts")
def test_every_graph_is_as_committed() -> None:
    found = list(differences(CONFIGS_FOLDER / "reference.yaml"))
    shown = "\n".join(found[:60])
    assert not found, f"review, then run: python -m scripts.golden_graphs\n{shown}"


def test_committed_graphs_are_small_and_complete() -> None:
    texts = {path.name: path.read_text() for path in FOLDER.glob("*.txt")}
    assert len(texts) == 11
    assert sum(map(len, texts.values())) < 300_000
    for text in texts.values():
        assert all(title in text for title in ("# onnx", "bm1684", "bm1684x", "bm1688"))


def graph(path: Path, *, weight: float = 1.0, axis: int = 1, rows: int = 3) -> list[str]:
    weights = np.full((5, rows), weight, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Softmax", ["y"], ["z"], axis=axis),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", None]) for n in "xz"]
    made = helper.make_graph(
        nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(weights, "w")]
    )
    onnx.save(helper.make_model(made), path)
    return onnx_lines(path)


def test_each_kind_of_change_shows(tmp_path: Path) -> None:
    plain = graph(tmp_path / "g.onnx")
    assert plain[1:3] == ["MatMul (x $w)", "Softmax axis=1 (-1)"]
    assert plain == graph(tmp_path / "g.onnx")
    for change in ({"weight": 1.5}, {"axis": 0}, {"rows": 4}):
        assert graph(tmp_path / "g.onnx", **change) != plain


def test_numbers_that_a_library_counts_do_not_show(tmp_path: Path) -> None:
    def model(value: float) -> list[str]:
        x = opset.parameter([-1, 8], np.float32, name="x")
        table = opset.constant(np.full((8, 8), value, dtype=np.float32))
        result = opset.matmul(x, table, transpose_a=False, transpose_b=False)
        result.output(0).set_names({"y"})
        openvino.save_model(openvino.Model([result], [x]), tmp_path / "m.xml")
        return ir_lines(tmp_path / "m.xml")

    assert model(2.0) == model(2.0)
    assert model(2.0) != model(3.0)


def test_a_difference_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scripts.golden_graphs.render", lambda config: {"new.txt": f"{config}\n"})
    assert main(["--check"]) == 1
    printed = capsys.readouterr().out
    assert "+++ built/new.txt" in printed
    assert "--- committed/vqa_text_encoder.txt" in printed
