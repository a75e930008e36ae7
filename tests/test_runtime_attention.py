"""What words look at: HuggingFace's own cross-attention, and a picture of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runtime import Captioner, InputError, Matcher, attention_maps
from runtime.__main__ import main
from runtime.errors import ArtifactError
from tests.runtime_support import (
    IMAGES,
    MODELS,
    THREADS,
    checkpoint_folder,
    reference_pixels,
    reference_tokenizer,
)

TEXT = "two blue rings"
CAPTION = "a white ring left of two blue rings"


def expected(artifacts: Path, task: str, text: str, layer: int) -> np.ndarray:
    """Of HuggingFace's text model ``[tokens, image tokens]``, the mean over heads."""
    folder = checkpoint_folder(artifacts, task)
    model = MODELS[task].from_pretrained(folder, attn_implementation="eager").eval()
    ids = reference_tokenizer(artifacts, task)(text, return_tensors="pt").input_ids
    inside = model.text_encoder if task == "itm" else model.text_decoder
    if task == "caption":
        ids = torch.cat([torch.tensor([[model.decoder_input_ids]]), ids[:, 1:-1]], dim=1)
    encoder = inside.encoder if task == "itm" else inside.bert.encoder
    seen: list[torch.Tensor] = []
    encoder.layer[layer].crossattention.self.register_forward_hook(
        lambda *called: seen.append(called[2][1])
    )
    with torch.no_grad():
        pixels = torch.from_numpy(reference_pixels(artifacts, task)[:1])
        states = model.vision_model(pixels).last_hidden_state
        inside(ids, encoder_hidden_states=states, output_attentions=True)
    return seen[0][0].mean(dim=0).numpy()


@pytest.mark.parametrize("layer", [0, 1])
def test_equal_to_huggingface(exported_artifacts: Path, layer: int) -> None:
    with Matcher.from_artifacts(exported_artifacts, target="onnx", threads=THREADS) as matcher:
        found = attention_maps(matcher, IMAGES[0], TEXT, layer)
    wanted = expected(exported_artifacts, "itm", TEXT, layer)[1:-1, 1:]
    assert found.words == ("two", "blue", "rings")
    assert found.layer == layer
    assert found.maps.shape == (3, 8, 8)
    assert found.maps.reshape(3, -1) == pytest.approx(wanted, abs=1e-5)


def test_a_caption_looks_where_huggingface_looks(exported_artifacts: Path) -> None:
    with Captioner.from_artifacts(exported_artifacts, target="onnx", threads=THREADS) as captioner:
        found = attention_maps(captioner, IMAGES[0], CAPTION)
        assert found.words == tuple(CAPTION.split())
        # The token before a word chooses it.
        wanted = expected(exported_artifacts, "caption", CAPTION, found.layer)[:-1, 1:]
        assert found.maps.reshape(len(wanted), -1) == pytest.approx(wanted, abs=1e-5)
        pieces = attention_maps(captioner, IMAGES[0], "ringsring").words
        assert pieces == ("ringsring",), "pieces of one word are one"
        with pytest.raises(InputError, match="empty"):
            attention_maps(captioner, IMAGES[0], " ")
        with pytest.raises(InputError, match="layer 9: choose from 0 to"):
            attention_maps(captioner, IMAGES[0], CAPTION, 9)


def test_the_command_draws_it(
    exported_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, drawn = tmp_path / "0.png", tmp_path / "drawn.png"
    IMAGES[0].save(image)
    backend = ["--artifacts", str(exported_artifacts), "--target", "onnx", "--threads", "1"]
    for given in (["caption"], ["match", "--text", TEXT], ["vqa", "--question", "how many?"]):
        drawn.unlink(missing_ok=True)
        command, *texts = given
        assert main([command, str(image), *texts, "--attention", str(drawn), *backend]) == 0
        assert "0.png" in capsys.readouterr().out
        with Image.open(drawn) as picture:
            assert np.asarray(picture).std() > 10
    two = ["match", str(image), "--text", "a", "--text", "b", "--attention", str(drawn), *backend]
    assert main(two) == 2
    assert "one image and one text" in capsys.readouterr().err


def test_without_the_exported_graphs_it_says_so(openvino_artifacts: Path, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("onnx", "BM*")
    shutil.copytree(openvino_artifacts / "itm", tmp_path / "itm", ignore=ignored)
    with (
        Matcher.from_artifacts(tmp_path, target="openvino") as matcher,
        pytest.raises(ArtifactError, match="copy the folder onnx"),
    ):
        attention_maps(matcher, IMAGES[0], TEXT)
