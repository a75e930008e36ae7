"""What the exported files look like: operators, names, axes, sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import onnx
import onnxruntime
import pytest
import torch

from configs.schema import TASK_COMPONENTS
from export.component import Tensors, tensor
from export.components import text_decoder, vision_encoder
from export.onnx_file import OPSET, write_onnx
from export.settings import read_settings
from pipeline.manifest import ComponentManifest, read_manifest
from tests.export_checkpoints import Sizes, make_model

EVERY = [(task, name) for task, names in TASK_COMPONENTS.items() for name in names]

#: what the TPU compiler imports and lowers on every chip, or folds once shapes are static
OPERATORS = {
    "Add", "Cast", "Clip", "Concat", "Constant", "Conv", "Div", "Erf", "Expand", "Flatten",
    "Gather", "Gemm", "LayerNormalization", "MatMul", "Mul", "ReduceSum", "Reshape", "Shape",
    "Slice", "Softmax", "Sqrt", "Sub", "Transpose", "Unsqueeze",
}  # fmt: skip


@pytest.mark.parametrize(("task", "component"), EVERY)
def test_graph(exported_artifacts: Path, task: str, component: str) -> None:
    folder = exported_artifacts / task / "onnx"
    model = onnx.load(folder / f"{component}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert OPSET == 17
    assert model.ir_version <= 9
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    weights = [(w.name, w.raw_data) for w in model.graph.initializer]
    assert len({data for _, data in weights}) == len(weights)
    assert not any(name.startswith("onnx::") for name, _ in weights)
    used = {name for node in model.graph.node for name in node.input}
    assert {name for name, _ in weights} <= used


@pytest.mark.parametrize(("task", "component"), EVERY)
def test_manifest_tells_the_files_tensors(
    exported_artifacts: Path, task: str, component: str
) -> None:
    folder = exported_artifacts / task / "onnx"
    manifest = read_manifest(ComponentManifest, folder / f"{component}.manifest.json")
    (net,) = manifest.nets
    session = onnxruntime.InferenceSession(folder / net.file)
    for specs, found in ((net.inputs, session.get_inputs()), (net.outputs, session.get_outputs())):
        assert [spec.artifact_name for spec in specs] == [value.name for value in found]
        assert [list(spec.shape) for spec in specs] == [value.shape for value in found]
        kinds = {"float32": "tensor(float)", "int64": "tensor(int64)"}
        assert [kinds[spec.dtype] for spec in specs] == [value.type for value in found]


def test_tied_embedding_is_stored_once(exported_artifacts: Path) -> None:
    model = onnx.load(exported_artifacts / "caption" / "onnx" / "text_decoder.onnx")
    lookup = next(node for node in model.graph.node if node.op_type == "Gather")
    (head,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert lookup.input[0] == head.input[1]


@pytest.mark.parametrize("task", ["caption", "vqa"])
def test_attention_is_what_the_chip_compiler_fuses(exported_artifacts: Path, task: str) -> None:
    graph = onnx.load(exported_artifacts / task / "onnx" / "text_decoder.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 4
    for softmax in softmaxes:
        scores = makers[softmax.input[0]]
        if scores.op_type == "Add":
            assert scores.input[1] in ("self_attention_mask", "cross_attention_mask")
            scores = makers[scores.input[0]]
        assert scores.op_type == "Mul"
        product = makers[scores.input[0]]
        assert product.op_type == "MatMul"
        query, key = (makers[name] for name in product.input)
        assert [list(node.attribute[0].ints) for node in (query, key)] == [
            [0, 2, 1, 3],
            [0, 2, 3, 1],
        ]
    joins = [node for node in graph.node if node.op_type == "Concat"]
    assert all(node.attribute[0].i == 1 for node in joins)
    assert all(node.input[0].startswith("past.") for node in joins)


def feed(session: onnxruntime.InferenceSession, **lengths: int) -> list[Any]:
    """Runs a session on random inputs with the given lengths of dynamic axes."""
    generator = numpy.random.default_rng(0)
    inputs = {}
    for value in session.get_inputs():
        shape = [lengths[n] if isinstance(n, str) else n for n in value.shape]
        if value.type == "tensor(int64)":
            inputs[value.name] = numpy.ones(shape, dtype=numpy.int64)
        elif "mask" in value.name:
            inputs[value.name] = numpy.zeros(shape, dtype=numpy.float32)
        else:
            inputs[value.name] = generator.standard_normal(shape, dtype=numpy.float32)
    return session.run(None, inputs)


@pytest.mark.parametrize("task", ["caption", "vqa"])
@pytest.mark.parametrize(
    ("batch", "text", "past", "encoder"),
    [(1, 1, 0, 1), (1, 4, 0, 65), (1, 1, 1, 9), (3, 1, 31, 20), (2, 5, 7, 1), (1, 1, 63, 65)],
)
def test_decoder_takes_any_lengths(
    exported_artifacts: Path, task: str, batch: int, text: int, past: int, encoder: int
) -> None:
    session = onnxruntime.InferenceSession(exported_artifacts / task / "onnx" / "text_decoder.onnx")
    logits, *rows = feed(
        session,
        batch=batch,
        text_tokens=text,
        past_tokens=past,
        total_tokens=past + text,
        encoder_tokens=encoder,
    )
    assert logits.shape[0] == batch
    assert all(row.shape[:2] == (batch, text) for row in rows)
    assert all(numpy.isfinite(value).all() for value in (logits, *rows))


@pytest.mark.parametrize(
    ("task", "component"), [pair for pair in EVERY if pair[1] != "text_decoder"]
)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (3, 6), (2, 64)])
def test_other_components_take_any_lengths(
    exported_artifacts: Path, task: str, component: str, batch: int, tokens: int
) -> None:
    session = onnxruntime.InferenceSession(exported_artifacts / task / "onnx" / f"{component}.onnx")
    for value in feed(session, batch=batch, text_tokens=tokens, encoder_tokens=tokens):
        assert value.shape[0] == batch
        assert numpy.isfinite(value).all()


def test_batch_rows_do_not_mix(exported_artifacts: Path) -> None:
    folder = exported_artifacts / "caption" / "onnx"
    session = onnxruntime.InferenceSession(folder / "vision_encoder.onnx")
    pixels = numpy.random.default_rng(1).standard_normal((3, 3, 96, 96), dtype=numpy.float32)
    (together,) = session.run(None, {"pixel_values": pixels})
    for row, single in zip(together, pixels, strict=True):
        (alone,) = session.run(None, {"pixel_values": single[None]})
        numpy.testing.assert_allclose(row, alone[0], atol=1e-4 * numpy.abs(alone).max())


class Fixed:
    """Settings read from a configuration in memory."""

    def __init__(self, task: str, sizes: Sizes, folder: Path) -> None:
        self.model = make_model(task, sizes)
        self.model.config.architectures = [type(self.model).__name__]
        self.model.config.save_pretrained(folder)
        files: Any = type("Files", (), {"task": task, "folder": folder})
        self.settings = read_settings(files)


def test_weights_beyond_the_limit_go_into_one_sidecar(tmp_path: Path) -> None:
    fixed = Fixed("caption", Sizes(), tmp_path)
    wrapper = text_decoder.wrapper(fixed.model, fixed.settings).eval()
    tensors = text_decoder.tensors(fixed.settings)
    inline, outside = tmp_path / "inline.onnx", tmp_path / "outside.onnx"
    with torch.no_grad():
        write_onnx(wrapper, tensors, inline)
        write_onnx(wrapper, tensors, outside, maximum_inline_bytes=1000)
    assert {path.name for path in tmp_path.glob("*.data")} == {"outside.onnx.data"}
    assert outside.stat().st_size + (tmp_path / "outside.onnx.data").stat().st_size > (
        inline.stat().st_size
    )
    lengths = {"batch": 2, "text_tokens": 3, "past_tokens": 4, "total_tokens": 7}
    results = [
        feed(onnxruntime.InferenceSession(path), encoder_tokens=5, **lengths)
        for path in (inline, outside)
    ]
    for one, other in zip(*results, strict=True):
        numpy.testing.assert_array_equal(one, other)
    assert onnx.load(inline).graph.node == onnx.load(outside).graph.node


def test_file_is_little_more_than_its_weights(tmp_path: Path) -> None:
    sizes = Sizes(vision_width=128, image=64)
    fixed = Fixed("caption", sizes, tmp_path)
    path = tmp_path / "vision_encoder.onnx"
    with torch.no_grad():
        wrapper = vision_encoder.wrapper(fixed.model, fixed.settings).eval()
        write_onnx(wrapper, vision_encoder.tensors(fixed.settings), path)
    weights = sum(p.numel() * 4 for p in fixed.model.vision_model.parameters())
    assert weights < path.stat().st_size < weights * 1.05
    session = onnxruntime.InferenceSession(path)
    assert session.get_outputs()[0].shape == ["batch", 65, 128]


def test_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    fixed = Fixed("itm", Sizes(), tmp_path)
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    with torch.no_grad():
        for path in paths:
            wrapper = vision_encoder.wrapper(fixed.model, fixed.settings).eval()
            write_onnx(wrapper, vision_encoder.tensors(fixed.settings), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_equal_weights_of_different_modules_are_stored_once(tmp_path: Path) -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Parameter(torch.arange(1000.0).reshape(10, 100))
            self.second = torch.nn.Parameter(self.first.detach().clone())

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return torch.matmul(torch.matmul(value, self.first), self.second.t())

    contract = Tensors(inputs=(tensor("x", "batch", 10),), outputs=(tensor("y", "batch", 10),))
    path = tmp_path / "twice.onnx"
    with torch.no_grad():
        write_onnx(Twice(), contract, path)
    model = onnx.load(path)
    assert [weight.name for weight in model.graph.initializer] == ["first"]
