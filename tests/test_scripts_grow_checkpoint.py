"""A grown captioner answers as the one that it was grown from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessorPil

from pipeline.scenes import draw, scenes
from scripts.grow_checkpoint import grown, main

ROOT = Path(__file__).resolve().parent.parent
SMALL = ROOT / "models" / "checkpoints" / "reference-caption"
BERT = ROOT / "models" / "vocabulary" / "bert-base-uncased-vocab.txt"


@pytest.fixture(scope="module")
def small() -> Any:
    return BlipForConditionalGeneration.from_pretrained(SMALL).eval()


def logits(model: Any) -> torch.Tensor:
    images = [draw(scene) for scene in scenes(2)]
    pixels = BlipImageProcessorPil.from_pretrained(SMALL)(images, return_tensors="pt")
    ids = AutoTokenizer.from_pretrained(SMALL)(["two blue rings", "a red circle"], padding=True)
    with torch.no_grad():
        result: torch.Tensor = model(
            pixel_values=pixels["pixel_values"], input_ids=torch.tensor(ids["input_ids"])
        ).logits
    return result


@pytest.mark.parametrize("outliers", [False, True])
def test_growth_keeps_every_logit(small: Any, outliers: bool) -> None:
    torch.manual_seed(0)
    text, vision = small.config.text_config, small.config.vision_config
    layers = max(text.num_hidden_layers, vision.num_hidden_layers) + 1
    big = grown(small, 2, layers, 0.0, outliers=outliers)
    assert big.config.text_config.hidden_size == 2 * text.hidden_size
    assert big.config.vision_config.num_attention_heads == 2 * vision.num_attention_heads
    assert (
        len(big.vision_model.encoder.layers) == len(big.text_decoder.bert.encoder.layer) == layers
    )
    expected = logits(small)
    assert float((logits(big) - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    largest = big.vision_model.encoder.layers[0].layer_norm1.weight.abs().max()
    usual = small.vision_model.encoder.layers[0].layer_norm1.weight.abs().max()
    assert bool(largest > 5 * usual) == outliers


def test_noise_leaves_nothing_zero_or_equal(small: Any) -> None:
    torch.manual_seed(0)
    for name, value in grown(small, 2, 5, 0.1).named_parameters():
        if "norm" not in name.lower():
            assert value.unique().numel() > 0.9 * value.numel(), name


def test_a_grown_checkpoint_speaks_with_another_vocabulary(small: Any, tmp_path: Path) -> None:
    out = tmp_path / "grown"
    sizes = ("--width", "2", "--layers", "5", "--positions", "80", "--noise", "0.1")
    assert main([*sizes, "--vocabulary", str(BERT), "--out", str(out)]) == 0
    big = BlipForConditionalGeneration.from_pretrained(out).eval()
    assert big.config.text_config.vocab_size == 30524
    images = [draw(scene) for scene in scenes(4)]
    pixels = BlipImageProcessorPil.from_pretrained(out)(images, return_tensors="pt")["pixel_values"]
    texts = []
    for model, folder in ((small, SMALL), (big, out)):
        with torch.no_grad():
            tokens = model.generate(pixel_values=pixels, max_new_tokens=20)
        texts.append(AutoTokenizer.from_pretrained(folder).batch_decode(tokens, True))
    assert texts[0] == texts[1]
