"""Settings of config.json that change the maths: as in HuggingFace, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from configs.errors import BlipEdgeError
from configs.schema import TASK_COMPONENTS, Task
from export.pipeline import plan, run
from pipeline.command import select
from pipeline.manifest import TaskManifest, read_manifest
from tests.export_checkpoints import Sizes, make_checkpoint, pieces, write_pipeline

TOLERANCE = 1e-4
BIAS = "text_decoder.cls.predictions"
#: A setting, the value that models usually have, and one that changes what they answer.
ODD = {
    "activations": Sizes(text={"hidden_act": "gelu_new"}, vision={"hidden_act": "quick_gelu"}),
    "rectified": Sizes(text={"hidden_act": "relu"}, vision={"hidden_act": "silu"}),
    "epsilons": Sizes(text={"layer_norm_eps": 0.3}, vision={"layer_norm_eps": 0.1}),
    "heads": Sizes(text_width=36, text_heads=3, vision_width=36, vision_heads=4),
    "wide_middles": Sizes(text={"intermediate_size": 37}, vision={"intermediate_size": 41}),
    "padded_vocabulary": Sizes(text={"vocab_size": len(pieces()) + 12}),
}
MATRIX: list[tuple[str, Task]] = [
    ("activations", "caption"),
    ("activations", "itm"),
    ("rectified", "vqa"),
    ("epsilons", "caption"),
    ("epsilons", "itm"),
    ("heads", "vqa"),
    ("heads", "itm"),
    ("wide_middles", "caption"),
    ("padded_vocabulary", "vqa"),
]


def export(folder: Path, task: Task, checkpoint: Path, **options: Any) -> Path:
    selection = select(write_pipeline(folder, {task: checkpoint}, **{task: options}))
    run(selection, plan(selection))
    return folder / "artifacts" / "test" / task


def worst(folder: Path, task: Task) -> float:
    """The largest error of any graph against what HuggingFace's own modules answered."""
    found = []
    for component in TASK_COMPONENTS[task]:
        graph = onnxruntime.InferenceSession(folder / "onnx" / f"{component}.onnx")
        record = np.load(folder / "onnx" / f"{component}.reference.npz")
        for case in {key.split("/")[0] for key in record}:
            feeds = {i.name: record[f"{case}/inputs/{i.name}"] for i in graph.get_inputs()}
            names = [output.name for output in graph.get_outputs()]
            for name, value in zip(names, graph.run(names, feeds), strict=True):
                if (key := f"{case}/outputs.model/{name}") in record:
                    scale = np.abs(record[key]).max()
                    found.append(float(np.abs(value - record[key]).max() / scale))
    assert found
    return max(found)


@pytest.mark.parametrize(("name", "task"), MATRIX)
def test_odd_checkpoints_answer_as_in_huggingface(tmp_path: Path, name: str, task: Task) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", task, ODD[name])
    folder = export(
        tmp_path, task, checkpoint, **({"question_start": "enc"} if task == "vqa" else {})
    )
    assert worst(folder, task) <= TOLERANCE
    manifest = read_manifest(TaskManifest, folder / "manifest.json")
    assert manifest.dimensions.head_size == ODD[name].text_width // ODD[name].text_heads
    if name == "padded_vocabulary":
        assert manifest.text.vocabulary_size == len(pieces()) + 12


def test_a_bias_that_is_not_shared_is_the_heads(tmp_path: Path) -> None:
    """Old files hold the head's bias under two names; HuggingFace computes with the head's own."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "caption")
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    weights[f"{BIAS}.decoder.bias"] = weights[f"{BIAS}.bias"] + 3.0 * torch.randn(len(pieces()) + 2)
    save_file(weights, path, {"format": "pt"})
    folder = export(tmp_path, "caption", checkpoint)
    assert worst(folder, "caption") <= TOLERANCE
    model = transformers.BlipForConditionalGeneration.from_pretrained(checkpoint)
    used = model.text_decoder.cls.predictions.decoder.bias.detach()
    assert torch.equal(used, weights[f"{BIAS}.decoder.bias"])


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("text_config", "hidden_act", "gelu_of_mine", "text_config.hidden_act"),
        ("vision_config", "hidden_act", "gelu_of_mine", "vision_config.hidden_act"),
        ("text_config", "layer_norm_eps", 0.0, "text_config.layer_norm_eps"),
        ("vision_config", "layer_norm_eps", -1.0, "vision_config.layer_norm_eps"),
        ("text_config", "num_attention_heads", 5, "text_config.hidden_size"),
        ("text_config", "return_dict", False, "return_dict"),
        ("text_config", "is_decoder", False, "text_config.is_decoder"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, section: str, key: str, value: Any, expected: str
) -> None:
    folder = tmp_path_factory.mktemp("refused")
    checkpoint = make_checkpoint(folder / "checkpoint", "caption")
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    config[section][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(BlipEdgeError) as caught:
        export(folder, "caption", checkpoint)
    assert str(caught.value).startswith(f"{path}: {expected}: ")
    assert len(str(caught.value).splitlines()) == 1
    shutil.rmtree(folder)
