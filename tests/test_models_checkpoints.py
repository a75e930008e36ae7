"""The committed reference checkpoints: layout, real weights, tokenizer, and the accuracy bar."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizerFast, BlipProcessor

from models.checkpoints.training.__main__ import BAR, MAIN_METRICS, main
from models.checkpoints.training.architecture import MODEL_CLASSES, TASKS
from models.checkpoints.training.checkpoint import checkpoint_folder
from models.checkpoints.training.evaluate import evaluate_checkpoint
from models.checkpoints.training.losses import decode_answers, encode_texts
from pipeline.scenes import CAPTION_PROMPT, draw, make_scene, vocabulary

CHECKPOINTS = Path(__file__).parents[1] / "models" / "checkpoints"
MEASURED_AGAIN = 100


@pytest.fixture(params=TASKS)
def task(request):
    return request.param


@pytest.fixture
def folder(task):
    return checkpoint_folder(CHECKPOINTS, task)


def test_all_checkpoints_together_are_small():
    weights = list(CHECKPOINTS.glob("reference-*/model.safetensors"))
    assert len(weights) == len(TASKS)
    assert sum(path.stat().st_size for path in weights) < 25e6


def test_recorded_figures_meet_the_bar(task, folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["task"] == task
    assert metrics["split"] == "heldout"
    assert metrics["scenes"] >= 1000
    assert metrics["accuracy"][MAIN_METRICS[task]] >= BAR


def test_measuring_again_meets_the_bar(task, folder):
    """Other held-out scenes than the recorded ones, so fewer of them leave some slack."""
    figures = evaluate_checkpoint(folder, task, MEASURED_AGAIN, start=500_000)
    assert figures["accuracy"][MAIN_METRICS[task]] >= BAR - 0.03


def test_prompted_captions_meet_the_bar():
    metrics = json.loads((CHECKPOINTS / "reference-caption" / "metrics.json").read_text())
    assert metrics["accuracy"]["prompted_caption_exact"] >= BAR


def test_matching_head_is_right_on_both_sides():
    accuracy = json.loads((CHECKPOINTS / "reference-itm" / "metrics.json").read_text())["accuracy"]
    assert accuracy["matching_by_truth/match"] >= 0.9
    assert accuracy["matching_by_truth/mismatch"] >= 0.9
    assert accuracy["contrast_ranking"] >= 0.7


def test_token_layout_mirrors_blip(folder, task):
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    text_config = MODEL_CLASSES[task].config_class.from_pretrained(folder).text_config
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [
        0, 1, 2, 3, 4,
    ]  # fmt: skip
    assert len(tokenizer) == text_config.vocab_size
    last_two = [text_config.vocab_size - 2, text_config.vocab_size - 1]
    assert tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == last_two
    assert text_config.bos_token_id == last_two[0]
    assert text_config.sep_token_id == tokenizer.sep_token_id
    assert text_config.pad_token_id == 0
    lines = (folder / "vocab.txt").read_text().splitlines()
    assert lines == tokenizer.convert_ids_to_tokens(list(range(len(lines))))
    assert len(lines) == text_config.vocab_size - 2


def test_tokenizer_knows_every_word_and_survives_any_text(folder):
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    for word in vocabulary():
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1, word
    unknown = tokenizer.unk_token_id
    assert unknown not in tokenizer("A quick zebra-crossing, 42 m wide (Café)!")["input_ids"]
    assert tokenizer("")["input_ids"] == [tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert unknown in tokenizer("\u6f22\u5b57")["input_ids"]


def test_heads_are_of_size_64(folder, task):
    config = MODEL_CLASSES[task].config_class.from_pretrained(folder)
    for part in (config.text_config, config.vision_config):
        assert part.hidden_size // part.num_attention_heads == 64


def test_no_weight_is_degenerate(folder, task):
    """Parity on near-zero weights, or on norms of exactly one and zero, would prove nothing."""
    model = MODEL_CLASSES[task].from_pretrained(folder)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if "norm" in name.lower() and name.endswith("weight"):
            assert (parameter - 1).abs().mean() > 1e-3, name
        elif "norm" in name.lower():
            assert parameter.abs().mean() > 1e-3, name
        elif parameter.ndim > 1:
            assert parameter.std() > 5e-3, name


def test_text_states_of_training_are_those_of_the_model():
    """The trainer's shortcut (image keys once per image) computes what the encoder computes."""
    folder = CHECKPOINTS / "reference-itm"
    model = MODEL_CLASSES["itm"].from_pretrained(folder).eval()
    ids = torch.tensor([[[2, 7, 9, 3, 0, 0], [2, 11, 12, 13, 8, 3]]])
    image_embeds = torch.randn(1, 65, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for embeds in (image_embeds, None):
            ours = encode_texts(model.text_encoder, ids, embeds)[0]
            repeated = None if embeds is None else embeds.expand(2, -1, -1)
            theirs = model.text_encoder(
                input_ids=ids[0],
                attention_mask=(ids[0] != 0).long(),
                encoder_hidden_states=repeated,
            )[0]
            real = ids[0] != 0
            torch.testing.assert_close(ours[real], theirs[real], atol=1e-4, rtol=1e-4)


def test_padded_training_answers_are_the_unpadded_models():
    """The trainer's decoder obeys the question mask, so that padding changes nothing."""
    model = MODEL_CLASSES["vqa"].from_pretrained(CHECKPOINTS / "reference-vqa").eval()
    generator = torch.Generator().manual_seed(0)
    answers = torch.tensor([[197, 20, 3]])
    questions = torch.randn(1, 9, 128, generator=generator)
    mask = torch.arange(9)[None] < 6
    with torch.inference_mode():
        ours = decode_answers(model.text_decoder, answers, questions, mask)
        theirs = model.text_decoder(
            input_ids=answers, encoder_hidden_states=questions[:, :6]
        ).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_prompt_is_continued_and_not_emitted_unasked():
    folder = CHECKPOINTS / "reference-caption"
    processor = BlipProcessor.from_pretrained(folder)
    model = MODEL_CLASSES["caption"].from_pretrained(folder).eval()
    image = draw(make_scene(3))
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    free = processor.decode(model.generate(pixel_values=pixels)[0], skip_special_tokens=True)
    assert not free.startswith(CAPTION_PROMPT)
    inputs = processor(images=image, text=CAPTION_PROMPT, return_tensors="pt")
    prompted = processor.decode(model.generate(**inputs)[0], skip_special_tokens=True)
    assert prompted == f"{CAPTION_PROMPT} {free}"


def test_training_takes_steps_saves_and_goes_on(tmp_path, capsys):
    options = ["--out", str(tmp_path / "out"), "--state", str(tmp_path / "state"), "--seed", "3"]
    options += ["--pool", "24", "--batch-size", "4", "--save-every", "2", "--threads", "1"]
    options += ["--interim-scenes", "0", "--scenes", "2"]
    weights = {}
    for steps in (2, 4):
        assert main([*options, "--steps", str(steps)]) == 1  # far below the bar
        for task in TASKS:
            model = MODEL_CLASSES[task].from_pretrained(checkpoint_folder(tmp_path / "out", task))
            weights[task, steps] = model.state_dict()
    assert "from step 2 to 4" in capsys.readouterr().out
    for task in TASKS:
        before, after = weights[task, 2], weights[task, 4]
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        # Muon's matrices as well as AdamW's embeddings and norms.
        for part in ("layers.0.mlp.fc1.weight", "position_embedding", "post_layernorm.bias"):
            assert any(name.endswith(part) for name in changed), (task, part)
