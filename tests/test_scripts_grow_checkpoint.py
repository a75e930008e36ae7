"""A grown captioner answers as the one that it was grown from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipVisionModel,
)

from pipeline.scenes import draw, scenes
from scripts.finer_patches import finer
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


@pytest.fixture(scope="module")
def fine(small: Any) -> Any:
    """BLIP-base's width and picture: 384 px in patches of 16."""
    torch.manual_seed(0)
    return grown(small, 6, 5, 0.1, geometry=(384, 16))


def test_finer_patches_become_the_old_ones_tokens(small: Any) -> None:
    """Without noise and in two layers: each old token nine times, or the class token's copy."""
    state = {name: value.detach() for name, value in grown(small, 6, 4, 0.0).state_dict().items()}
    config = type(small.config).from_dict(small.config.to_dict()).vision_config
    for key in ("hidden_size", "num_attention_heads", "intermediate_size"):
        setattr(config, key, getattr(config, key) * 6)
    old = BlipVisionModel(config).eval()
    prefix = "vision_model."
    mine = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    old.load_state_dict(mine)
    made = finer(config, state, 384, 16)
    new = BlipVisionModel(config).eval()
    new.load_state_dict(
        {n.removeprefix(prefix): v for n, v in made.items() if n.startswith(prefix)}
    )
    pixels = BlipImageProcessorPil.from_pretrained(SMALL)([draw(next(iter(scenes(1))))])
    images = torch.tensor(pixels["pixel_values"][0])[None]
    with torch.no_grad():
        wanted = old.embeddings(images)
        large = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
        found = new.encoder.layers[0](new.embeddings(large))
    blocks = wanted[:, 1:].view(1, 8, 1, 8, 1, 768).expand(1, 8, 3, 8, 3, 768).reshape(1, 576, 768)
    off = (found[:, 1:] - blocks).norm(dim=-1) / blocks.norm(dim=-1)
    lent = (found[:, 1:] - wanted[:, :1]).norm(dim=-1) / wanted[:, 0].norm() < 0.002
    assert int(lent.sum()) == 8
    assert float(off[~lent].max()) < 0.002
    assert float((found[:, 0] - wanted[:, 0]).abs().max()) < 1e-3


def test_finer_patches_keep_answers(small: Any, fine: Any) -> None:
    assert fine.config.vision_config.num_hidden_layers == 5
    images = [draw(scene) for scene in scenes(3)]
    texts = []
    for model, side in ((small, 96), (fine, 384)):
        processor = BlipImageProcessorPil.from_pretrained(SMALL)
        processor.size = {"height": side, "width": side}
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            texts.append(model.generate(pixel_values=pixels, max_new_tokens=20).tolist())
    assert texts[0] == texts[1]


def test_finer_patches_have_nothing_zero_or_equal(fine: Any) -> None:
    for name, value in fine.named_parameters():
        if "norm" not in name.lower():
            assert value.unique().numel() > 0.9 * value.numel(), name


@pytest.mark.parametrize("geometry", [("400", "16"), ("384", "24"), ("384", "8")])
def test_sizes_that_do_not_fit_are_refused(
    geometry: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, patch = geometry
    sizes = ["--layers", "5", "--image-size", image, "--patch-size", patch]
    assert main([*sizes, "--out", str(tmp_path / "grown")]) == 2
    assert "not whole parts" in (said := capsys.readouterr().out) or "do not" in said
    assert not (tmp_path / "grown").exists()


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
