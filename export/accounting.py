"""Compares stored tensors with the model of config.json: none is missing, none is left over."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from configs.errors import InputError
from configs.load import shown
from export.checkpoint import CheckpointFiles
from export.settings import read_config
from pipeline.checkpoint.files import CONFIG
from pipeline.checkpoint.tensors import BUFFER

_FLOATS = ("F64", "F32", "F16", "BF16")
_ADAPTER = re.compile(r"\.(lora_|base_layer\.|modules_to_save\.)")
_VISION = "vision_model."
_TEXTS = ("text_decoder.bert.", "text_encoder.")


def check_tensors(files: CheckpointFiles) -> None:
    """Refuses weights that the model does not use and a configuration of another size.

    Sizes are compared before a model is built: one of a wrong size may not fit in memory.

    Raises:
        InputError: naming the tensor and the cure.
    """
    import torch
    import transformers

    stored = {name: tensor.shape for name, tensor in files.tensors.items()}
    where = shown(files.folder)
    if adapters := [name for name in stored if _ADAPTER.search(name)]:
        raise InputError(
            f"{where}: holds an adapter that is not merged ({adapters[0]}); merge it: "
            "model.merge_and_unload().save_pretrained(folder)"
        )
    prefix = min(stored).partition(".")[0] + "."
    if all(name.startswith(prefix) for name in stored) and prefix != _VISION:
        raise InputError(
            f"{where}: all names begin with {prefix}; save the model inside that wrapper "
            "(model.module.save_pretrained(folder))"
        )
    config = read_config(files)
    for key, found, name in _sizes(config, stored):
        other = key.removeprefix("vision_config.") if "image_size" in key else ""
        cure = f"; for other pictures give tasks.{files.task}.{other}" if other else ""
        raise InputError(
            f"{shown(files.folder / CONFIG)}: {key} does not fit the weights: {name} {found}; "
            f"use the config.json of these weights{cure}"
        )
    with torch.device("meta"):
        model = getattr(transformers, files.identity.architecture)(config)
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = dict(model.all_tied_weights_keys)
    tied |= {name: alias for alias, name in tied.items()}
    missing = [name for name in needed if name not in stored and tied.get(name) not in stored]
    if missing:
        raise InputError(
            f"{where}: {len(missing)} weights are missing, among them {missing[0]}; "
            "use a complete checkpoint"
        )
    for name, shape in stored.items():
        if name.endswith(BUFFER):
            continue
        if name not in needed:
            raise InputError(
                f"{where}: the model has no {name}, so it would be left out; use the config.json "
                "of these weights, or remove it if the model does without"
            )
        if shape != needed[name]:
            raise InputError(
                f"{where}: {name} is {_size(shape)}, the model of config.json needs "
                f"{_size(needed[name])}; use the config.json of these weights"
            )
        if files.tensors[name].dtype not in _FLOATS:
            raise InputError(
                f"{where}: {name} is of type {files.tensors[name].dtype}; give weights that are "
                "not quantized"
            )


def _sizes(config: Any, stored: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, str, str]]:
    """Keys of config.json that differ from the weights: ``key: value``, the size and the tensor."""
    text, vision = config.text_config, config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    compared = [
        ("vision_config.hidden_size", vision.hidden_size, "embeddings.patch_embedding.weight", 0),
        ("vision_config.patch_size", vision.patch_size, "embeddings.patch_embedding.weight", 2),
        ("vision_config.image_size", tokens, "embeddings.position_embedding", 1),
        (
            "vision_config.intermediate_size",
            vision.intermediate_size,
            "encoder.layers.0.mlp.fc1.weight",
            0,
        ),
        ("text_config.vocab_size", text.vocab_size, "embeddings.word_embeddings.weight", 0),
        ("text_config.hidden_size", text.hidden_size, "embeddings.word_embeddings.weight", 1),
        (
            "text_config.max_position_embeddings",
            text.max_position_embeddings,
            "embeddings.position_embeddings.weight",
            0,
        ),
        (
            "text_config.intermediate_size",
            text.intermediate_size,
            "encoder.layer.0.intermediate.dense.weight",
            0,
        ),
    ]
    for key, value, suffix, axis in compared:
        for prefix in (_VISION,) if key.startswith("vision") else _TEXTS:
            shape = stored.get(prefix + suffix)
            if shape is not None and (axis >= len(shape) or shape[axis] != value):
                shown_value = vision.image_size if key.endswith("image_size") else value
                yield f"{key}: {shown_value}", f"is {_size(shape)}", prefix + suffix
    for key, layers, prefixes in (
        ("vision_config.num_hidden_layers", vision.num_hidden_layers, (_VISION,)),
        ("text_config.num_hidden_layers", text.num_hidden_layers, _TEXTS),
    ):
        for prefix in prefixes:
            pattern = re.compile(re.escape(prefix) + r"encoder\.layers?\.(\d+)\.")
            found = {int(match[1]) for name in stored if (match := pattern.match(name))}
            if found and max(found) + 1 != layers:
                yield f"{key}: {layers}", f"are {max(found) + 1} layers", f"{prefix}encoder"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
