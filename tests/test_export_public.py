"""The layouts of the public repositories: their own small files, weights of another width."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoTokenizer, BlipConfig

from configs.layout import REPOSITORY_ROOT, Layout
from configs.load import load_pipeline
from configs.schema import Task
from export.accounting import _sizes, check_tensors
from export.checkpoint import ARCHITECTURES, find, inspect
from export.model import load_model
from export.processor import image_settings, load_processor, text_settings
from export.settings import check_shapes, read_settings
from tests.export_checkpoints import write_pipeline
from tests.model_hub import serving

FOLDER = Path(__file__).resolve().parent / "public_checkpoints"
VOCABULARY = REPOSITORY_ROOT / "models" / "vocabulary" / "bert-base-uncased-vocab.txt"
REPOSITORIES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
SAFETENSORS = ("blip-image-captioning-large", "blip-vqa-base")
NARROW = {"num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2}


def task_of(repository: str) -> Task:
    kinds: dict[str, Task] = {"captioning": "caption", "vqa": "vqa", "itm": "itm"}
    return next(task for word, task in kinds.items() if word in repository)


def publish(repository: str, folder: Path) -> Any:
    """Writes a repository with narrow weights; returns its model."""
    shutil.copytree(FOLDER / repository, folder)
    shutil.copyfile(VOCABULARY, folder / "vocab.txt")
    settings = json.loads((folder / "config.json").read_text())
    wide_vision = settings["vision_config"]["hidden_size"] > settings["text_config"]["hidden_size"]
    for part, width in (("text", 32), ("vision", 48 if wide_vision else 32)):
        settings[f"{part}_config"] |= {**NARROW, "hidden_size": width}
    if "encoder_hidden_size" in settings["text_config"]:
        settings["text_config"]["encoder_hidden_size"] = settings["vision_config"]["hidden_size"]
    (folder / "config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = BlipConfig.from_dict(settings)
    model = getattr(transformers, ARCHITECTURES[task_of(repository)])(config).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for prefix in ("text_decoder.bert.", "text_encoder."):
        if any(name.startswith(prefix) for name in state):
            state[f"{prefix}embeddings.position_ids"] = torch.arange(512)[None]
    if repository in SAFETENSORS:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(state, folder / "pytorch_model.bin")
    return model


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_public_layout(tmp_path: Path, repository: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(repository)
    expected = publish(repository, tmp_path / "published")
    name = f"Salesforce/{repository}"
    layout = Layout(load_pipeline(write_pipeline(tmp_path, {task: name})))
    with serving(monkeypatch, tmp_path / "cache") as hub:
        hub.add(name, tmp_path / "published")
        files = inspect(find(task, layout.pipeline.tasks[task]), layout.converted)
    settings = read_settings(files)
    check_shapes(settings, layout.pipeline.tasks[task].shapes)
    check_tensors(files)
    model = load_model(files)
    for key, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    processor = load_processor(files, settings)
    text = text_settings(processor, settings, layout.pipeline.tasks[task])
    assert (text.start_token_id, text.enc_token_id, text.end_token_id) == (30522, 30523, 102)
    assert text.vocabulary_size == 30524
    image = image_settings(processor)
    assert (image.height, image.width, image.resample) == (384, 384, "bicubic")
    assert image.mean == (0.48145466, 0.4578275, 0.40821073)
    words = "A Café, 42 zebra-crossings!"
    original = AutoTokenizer.from_pretrained(tmp_path / "published")
    assert processor.tokenizer(words).input_ids == original(words).input_ids
    assert processor.tokenizer("a picture of").input_ids == [101, 1037, 3861, 1997, 102]


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_sizes_that_are_compared_are_those_of_the_full_model(repository: str) -> None:
    """Unchanged configurations, on a device without memory."""
    config = BlipConfig.from_dict(json.loads((FOLDER / repository / "config.json").read_text()))
    with torch.device("meta"):
        model = getattr(transformers, ARCHITECTURES[task_of(repository)])(config)
    stored = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert list(_sizes(config, stored)) == []
    config.vision_config.num_hidden_layers += 1
    config.text_config.vocab_size += 1
    wrong = [key.partition(":")[0] for key, _, _ in _sizes(config, stored)]
    assert {*wrong} == {"text_config.vocab_size", "vision_config.num_hidden_layers"}
