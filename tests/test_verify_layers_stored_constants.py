"""Exported constants are found in compiled files however they are laid out, and only there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.files.nets import HostLookup
from verify.layers.chip_constants import ChipConstants, chip_constants
from verify.layers.graph import ExportedGraph
from verify.layers.stored_constants import Format, bits, find_constants

SHAPE = (96, 64)


def weight(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def share(stored: np.ndarray, exported: np.ndarray, path: Path, kind: Format) -> float:
    header = np.arange(37, dtype=np.uint16).tobytes() + b"\0\0"
    path.write_bytes(header + bits(stored, kind).tobytes() + bytes(6))
    (found,) = find_constants({"weight": exported}, [path], [kind])
    return found.share


def tiled(array: np.ndarray) -> np.ndarray:
    """Lanes of 32 columns, as a chip's memory has them."""
    return np.ascontiguousarray(array.reshape(-1, 2, 32).transpose(1, 0, 2))


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.transpose, tiled])
def test_every_layout_is_found(tmp_path: Path, kind: Format, layout: object) -> None:
    array = weight()
    stored = np.ascontiguousarray(layout(array))  # type: ignore[operator]
    assert share(stored, array, tmp_path / "file", kind) == 1.0


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_another_weight_is_not_found(tmp_path: Path, kind: Format) -> None:
    array = weight()
    noisy = array * (1 + 0.01 * weight(1))
    assert share(noisy, array, tmp_path / "file", kind) < 0.01
    assert share(weight(2), array, tmp_path / "file", kind) < 0.01


def test_one_changed_row_is_missed(tmp_path: Path) -> None:
    array = weight()
    changed = array.copy()
    changed[50] += 0.05
    found = share(changed, array, tmp_path / "file", "float16")
    assert found == pytest.approx(1 - 1 / SHAPE[0], abs=1e-6)


def test_constants_without_a_pattern_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(64))
    constants = {"ones": np.ones(128, dtype=np.float32), "few": weight()[0, :8]}
    assert find_constants(constants, [tmp_path / "file"], ["float32"]) == []


def tied_decoder(folder: Path, embeddings: np.ndarray, positions: np.ndarray) -> ExportedGraph:
    """A decoder's head tied to its embeddings; both embeddings are looked up on the host."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["embeddings", "input_ids"], ["tokens"]),
            helper.make_node("Gather", ["positions", "position_ids"], ["places"]),
            helper.make_node("Add", ["tokens", "places"], ["sum"]),
            helper.make_node("Transpose", ["embeddings"], ["head"], perm=[1, 0]),
            helper.make_node("MatMul", ["sum", "head"], ["logits"]),
        ],
        "decoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, [1, 4])
            for name in ("input_ids", "position_ids")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, SHAPE[0]])],
        [
            numpy_helper.from_array(embeddings, "embeddings"),
            numpy_helper.from_array(positions, "positions"),
        ],
    )
    onnx.save(helper.make_model(graph), folder / "decoder.onnx")
    return ExportedGraph(folder / "decoder.onnx")


def looked_up(folder: Path, graph: ExportedGraph, *stored: np.ndarray) -> ChipConstants:
    """Of a bf16 artifact whose files each hold such a head, with tables in float16."""
    names = ["nets.bmodel", "step.bmodel"][: len(stored)]
    for name, head in zip(names, stored, strict=True):
        (folder / name).write_bytes(bits(head, "bfloat16").tobytes())
    tables = {"input_ids": "tokens.npy", "position_ids": "positions.npy"}
    lookups = [HostLookup(ids, f"{ids}_rows", table) for ids, table in tables.items()]
    variant = SimpleNamespace(inputs=[SimpleNamespace(name="input_ids_rows", shape=(1, 4, 64))])
    net = SimpleNamespace(host_lookups=lookups)
    files = [*names, *tables.values()]
    manifest = SimpleNamespace(folder=folder, files=files, nets=[net], compiled_nets=[variant])
    return chip_constants(graph, manifest, "bf16")  # type: ignore[arg-type]


def test_tables_of_the_host_are_compared_by_rows_and_the_rest_is_in_the_nets(
    tmp_path: Path,
) -> None:
    embeddings, positions = weight(3), weight(4)
    graph = tied_decoder(tmp_path, embeddings, positions)
    np.save(tmp_path / "tokens.npy", embeddings.astype(np.float16))
    np.save(tmp_path / "positions.npy", positions.astype(np.float16))

    whole = looked_up(tmp_path, graph, embeddings)
    assert [stored.name for stored in whole.found] == ["embeddings"]
    assert whole.faults(1e-6) == []

    # The right table does not make a wrong head right, nor the right head a wrong table.
    ((name, what),) = looked_up(tmp_path, graph, weight(5)).faults(1e-6)
    assert name == "embeddings"
    assert "not in nets.bmodel" in what
    ((name, what),) = looked_up(tmp_path, graph, embeddings, weight(5)).faults(1e-6)
    assert "not in step.bmodel" in what
    np.save(tmp_path / "positions.npy", positions[::-1].astype(np.float16))
    ((name, what),) = looked_up(tmp_path, graph, embeddings).faults(1e-6)
    assert name == "positions"
    assert "is not the exported one" in what
