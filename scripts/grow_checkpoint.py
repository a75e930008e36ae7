"""Grow a small trained captioner to a full-size one that answers the same.

Width grows by replication: what makes a channel is repeated, and what reads it is split among the
copies by random fractions that sum to one, so every LayerNorm sees the statistics that it was
trained with. Heads are repeated, their size stays. Depth grows by layers that add nothing, the
number of image tokens by finer patches (``finer_patches``). Noise then makes sure that nothing is
exactly zero or equal. ``python -m scripts.grow_checkpoint --help``.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessorPil

from models.checkpoints.training.checkpoint import build_tokenizer, save_checkpoint
from scripts.finer_patches import VISION, State, finer

TEXT = "text_decoder.bert.encoder.layer."
HEAD = "text_decoder.cls.predictions."
WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
POSITIONS = "text_decoder.bert.embeddings.position_embeddings.weight"
#: what ends a layer's branches; with zeros in it, a layer adds nothing
_ENDS = re.compile(r"(self_attn\.projection|mlp\.fc2|output\.dense)\.(weight|bias)$")
#: how far below every known word's bias a new word's is, so that none is ever said
_UNSAID = 20.0
#: outliers: share of a norm's or value's channels, and the least and most they are scaled by
_OUTLIERS, _SCALES = 0.01, (20.0, 60.0)


def main(arguments: list[str] | None = None) -> int:
    """Grow one checkpoint; returns 2 for sizes that do not fit each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default="models/checkpoints/reference-caption")
    parser.add_argument("--width", type=int, default=6, help="copies of each channel and head")
    parser.add_argument("--layers", type=int, default=12, help="of the vision and the text part")
    parser.add_argument("--image-size", type=int, help="pixels of a side; default: its own")
    parser.add_argument("--patch-size", type=int, default=16, help="with --image-size")
    parser.add_argument("--vocabulary", type=Path, help="words, one a line; default: its own")
    parser.add_argument("--positions", type=int, help="text positions; default: its own")
    parser.add_argument("--noise", type=float, default=0.1, help="share of a matrix's spread")
    parser.add_argument("--outliers", action="store_true", help="large channels, the same answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint's folder")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    model = BlipForConditionalGeneration.from_pretrained(options.checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    pieces = [word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    pieces = [word for word in pieces if word not in ("[DEC]", "[ENC]")]
    words = _vocabulary(options.vocabulary, pieces) if options.vocabulary else None
    sizes = (options.image_size, options.patch_size) if options.image_size else None
    try:
        big = grown(
            model,
            options.width,
            options.layers,
            options.noise,
            outliers=options.outliers,
            geometry=sizes,
        )
    except ValueError as error:
        Console().print(f"--image-size, --patch-size, --width: {error}")
        return 2
    if words or options.positions:
        big = with_words(big, pieces, words or pieces, options.positions)
    length = big.config.text_config.max_position_embeddings
    images = BlipImageProcessorPil.from_pretrained(options.checkpoint)
    side = big.config.vision_config.image_size
    images.size = {"height": side, "width": side}
    made = words or pieces
    save_checkpoint(options.out, big, build_tokenizer(made, length), images, made)
    count = sum(parameter.numel() for parameter in big.parameters())
    Console().print(f"{options.out}: {count / 1e6:.1f} M parameters")
    return 0


def _vocabulary(path: Path, known: list[str]) -> list[str]:
    """A file's words; known ones that it lacks take its unused places."""
    words = path.read_text("utf-8").splitlines()
    places = (index for index, word in enumerate(words) if word.startswith("[unused"))
    for word in sorted({*known} - {*words}):
        words[next(places)] = word
    return words


def grown(
    model: Any,
    width: int,
    layers: int,
    noise: float,
    *,
    outliers: bool = False,
    geometry: tuple[int, int] | None = None,
) -> Any:
    """A model ``width`` times as wide with so many layers in each part.

    ``geometry`` is the pixels of a picture's and a patch's side; None for the model's own.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    state: State = {
        name: value.detach()
        for name, value in model.state_dict().items()
        if not name.startswith(f"{HEAD}decoder.")
    }
    for part, prefix in ((config.vision_config, VISION), (config.text_config, TEXT)):
        # Finer patches take a layer of their own.
        deep = layers - (prefix == VISION and geometry is not None)
        state = _deepened(state, prefix, part.num_hidden_layers, deep)
        part.num_hidden_layers = deep
        for key in ("hidden_size", "num_attention_heads", "intermediate_size"):
            setattr(part, key, getattr(part, key) * width)
    config.text_config.encoder_hidden_size = config.vision_config.hidden_size
    donors = dict(model.state_dict())
    spreads = {name: _spread(name, value, donors) for name, value in state.items()}
    state = {name: _widened(name, value, width) for name, value in state.items()}
    for name, value in state.items():
        if noise and "norm" not in name.lower():
            # A column that was split among copies is narrower by their number.
            narrow = width if value.dim() == 2 and "embedding" not in name else 1
            state[name] = value + noise * spreads[name] / narrow * torch.randn_like(value)
    if geometry:
        state = finer(config.vision_config, state, *geometry, noise)
    if outliers:
        _add_outliers(state)
    return _model(config, state)


def with_words(model: Any, old: list[str], new: list[str], positions: int | None) -> Any:
    """The model with another vocabulary that holds the old words; the others are never said."""
    config = type(model.config).from_dict(model.config.to_dict())
    text = config.text_config
    state = {n: v for n, v in model.state_dict().items() if not n.startswith(f"{HEAD}decoder.")}
    table, bias = state[WORDS], state[f"{HEAD}bias"]
    places = {word: index for index, word in enumerate([*new, "[DEC]", "[ENC]"])}
    rows = torch.tensor([places[word] for word in [*old, "[DEC]", "[ENC]"]])
    words = table.mean(0) + table.std() * torch.randn(len(places), table.shape[1])
    words[rows] = table
    state[WORDS] = words
    state[f"{HEAD}bias"] = torch.full((len(places),), float(bias.min()) - _UNSAID)
    state[f"{HEAD}bias"][rows] = bias
    if positions:
        length = state[POSITIONS].shape[0]
        state[POSITIONS] = state[POSITIONS].repeat(-(-positions // length), 1)[:positions]
        text.max_position_embeddings = positions
    ids = {"bos_token_id": "[DEC]", "sep_token_id": "[SEP]", "pad_token_id": "[PAD]"}
    for key, word in ids.items():
        setattr(text, key, places[word])
    text.vocab_size = len(places)
    return _model(config, state)


def _model(config: Any, state: State) -> Any:
    model = BlipForConditionalGeneration(config)
    report = model.load_state_dict(state, strict=False)
    astray = [name for name in report.missing_keys if not name.startswith(f"{HEAD}decoder.")]
    if astray or report.unexpected_keys:
        raise ValueError(f"{(astray + report.unexpected_keys)[0]}: not a part of this captioner")
    model.tie_weights()
    return model.eval()


def _deepened(state: State, prefix: str, old: int, new: int) -> State:
    """Layers that add nothing behind each layer, as evenly as there are."""
    kept = {name: value for name, value in state.items() if not name.startswith(prefix)}
    number = 0
    for layer in range(old):
        copies = (layer + 1) * new // old - layer * new // old
        for copy in range(copies):
            for name, value in state.items():
                start = f"{prefix}{layer}."
                if not name.startswith(start):
                    continue
                key = name.removeprefix(start)
                if copy and _ENDS.search(key):
                    value = torch.zeros_like(value)
                # What is normalised already passes a plain norm; the affine comes with the last.
                norm = prefix == TEXT and "LayerNorm" in key
                last = key.startswith("output.") and copy == copies - 1
                if norm and not last and (copy or key.startswith("output.")):
                    value = torch.full_like(value, float(key.endswith("weight")))
                kept[f"{prefix}{number}.{key}"] = value
            number += 1
    return kept


def _spread(name: str, value: torch.Tensor, donors: State) -> float:
    """A tensor's spread; where it is zero, that of the first layer's."""
    if not value.any():
        name = re.sub(r"(layers?)\.\d+\.", r"\1.0.", name)
        value = donors[name]
    return float(value.std())


def _widened(name: str, value: torch.Tensor, width: int) -> torch.Tensor:
    if name == f"{HEAD}bias":
        return value
    if "norm" in name.lower():
        # The tied head reads all copies at once.
        return value.repeat(width) / (width if name.startswith(HEAD) else 1)
    if "patch_embedding" in name:
        return value.repeat(width, *[1] * (value.dim() - 1))
    if "embedding" in name:
        return value.repeat(*[1] * (value.dim() - 1), width)
    blocks = value.chunk(3) if ".qkv." in name else (value,)
    rows = torch.cat([block.repeat(width, *[1] * (block.dim() - 1)) for block in blocks])
    if rows.dim() == 1:
        return rows
    shares = torch.rand(width, value.shape[1]) + 0.5
    return rows.repeat(1, width) * (shares / shares.sum(0)).flatten()


def _add_outliers(state: State) -> None:
    """Scales channels of norms and values up, and what reads them down."""
    for name in list(state):
        layer, _, part = name.rpartition("layer_norm1.weight")
        if layer and not part:
            for norm, reader in (("layer_norm1", "self_attn.qkv"), ("layer_norm2", "mlp.fc1")):
                _scale(state, f"{layer}{norm}", f"{layer}{reader}", slice(None))
            size = state[name].shape[0]
            values = slice(2 * size, 3 * size)
            _scale(state, f"{layer}self_attn.qkv", f"{layer}self_attn.projection", values)
        if name.endswith("self.value.weight"):
            value = name.removesuffix(".weight")
            _scale(state, value, value.replace("self.value", "output.dense"), slice(None))


def _scale(state: State, maker: str, reader: str, rows: slice) -> None:
    count = state[f"{maker}.bias"][rows].shape[0]
    factors = torch.ones(count)
    chosen = torch.randperm(count)[: max(1, int(_OUTLIERS * count))]
    factors[chosen] = torch.empty(len(chosen)).uniform_(*_SCALES)
    for kind in ("weight", "bias"):
        made = state[f"{maker}.{kind}"].clone()
        made[rows] *= factors if made.dim() == 1 else factors[:, None]
        state[f"{maker}.{kind}"] = made
    state[f"{reader}.weight"] = state[f"{reader}.weight"] / factors


if __name__ == "__main__":
    sys.exit(main())
