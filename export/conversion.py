"""Converts other formats to safetensors: pickles of tensors, and files of the original BLIP code.

``torch.load(weights_only=True)`` reads tensors and containers and runs no code of the file.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save_file

from configs.errors import InputError
from configs.layout import REPOSITORY_ROOT
from configs.load import shown
from configs.schema import Task
from export.checkpoint import ARCHITECTURES, CheckpointFiles
from pipeline.checkpoint.converted import small_files
from pipeline.checkpoint.files import CONFIG, WEIGHTS, read_json

_VOCABULARY = REPOSITORY_ROOT / "models" / "vocabulary" / "bert-base-uncased-vocab.txt"
#: names of the original code and HuggingFace's, in the order in which they are replaced
_RENAMED = (
    (r"^visual_encoder\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj", "vision_model.embeddings.patch_embedding"),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (
        r"^visual_encoder\.blocks\.(\d+)\.attn\.proj",
        r"vision_model.encoder.layers.\1.self_attn.projection",
    ),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.", r"vision_model.encoder.layers.\1.self_attn."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm", r"vision_model.encoder.layers.\1.layer_norm"),
    (r"^visual_encoder\.blocks\.", "vision_model.encoder.layers."),
)
#: what training leaves in retrieval files: the momentum model, its queues and the temperature
_TRAINING = re.compile(
    r"(visual_encoder_m|text_encoder_m|text_decoder_m|(vision|text)_proj_m)\.|(image|text|idx|ptr)_queue$|(queue_ptr|temp)$"
)
_POSITIONS = "vision_model.embeddings.position_embedding"
_HEAD_SIZE = 64  # of every model of the original code


def convert_pickles(paths: Sequence[Path], folder: Path) -> None:
    """Writes ``pytorch_model.bin``, or its shards, as one safetensors file.

    Raises:
        InputError: not readable, or more than a table of tensors.
    """
    state: dict[str, torch.Tensor] = {}
    for path in paths:
        state |= _tensors(_load(path), path)
    # HuggingFace asks for one beside weights, even where it is given another configuration.
    shutil.copyfile(paths[0].parent / CONFIG, folder / CONFIG)
    _save(state, folder)


def convert_original(path: Path, folder: Path) -> None:
    """Writes a ``.pth`` file of the original code as a folder in the HuggingFace format.

    Settings come from the HuggingFace folder that the file is in; without one they are those of the
    original code, with sizes read from the weights.

    Raises:
        InputError: not readable, or not a BLIP model of the original code.
    """
    content = _load(path)
    state = _tensors(content.get("model", content) if isinstance(content, dict) else content, path)
    state = {_renamed(name): t for name, t in state.items() if not _TRAINING.match(name)}
    if _POSITIONS not in state:
        raise InputError(
            f"{shown(path)}: holds no visual_encoder.pos_embed; give a .pth of the original BLIP "
            "code, or a folder in the HuggingFace format"
        )
    if (path.parent / CONFIG).is_file():
        for name in small_files(path.parent):
            shutil.copyfile(path.parent / name, folder / name)
    else:
        _write_settings(state, path, folder)
    vision = read_json(folder / CONFIG).get("vision_config", {})
    try:
        side = int(vision.get("image_size", 384)) // int(vision.get("patch_size", 16))
    except (TypeError, ValueError, ZeroDivisionError):
        raise InputError(
            f"{shown(path.parent / CONFIG)}: vision_config: image_size or patch_size is not a "
            "number; correct it"
        ) from None
    state[_POSITIONS] = interpolated(state[_POSITIONS], side)
    _save(state, folder)


def merge_adapter(base: CheckpointFiles, adapter: Path, folder: Path) -> None:
    """Writes a checkpoint with an adapter of the peft library merged into its weights.

    Raises:
        InputError: the adapter does not fit the checkpoint.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    from export.accounting import check_tensors
    from export.model import load_model

    check_tensors(base)
    try:
        with warnings.catch_warnings():
            # Of weights that are missing or left over peft only warns.
            warnings.simplefilter("ignore", UserWarning)
            adapted = PeftModel.from_pretrained(load_model(base), str(adapter))
        stored = {*load_peft_weights(str(adapter), device="cpu")}
        used = {*get_peft_model_state_dict(adapted, save_embedding_layers=False)}
        if astray := sorted((used - stored) | (stored - used - {*adapted.state_dict()})):
            raise ValueError(f"{astray[0]} is not in {'it' if astray[0] in used else 'the model'}")
        merged = adapted.merge_and_unload()
    except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{shown(adapter)}: cannot be merged into {base.identity.source} ({reason}); use the "
            "adapter with the checkpoint that it was trained on"
        ) from None
    for origin in (base.folder, adapter):  # what the adapter brings itself comes last
        for name in small_files(origin):
            if name != CONFIG or origin == base.folder:
                shutil.copyfile(origin / name, folder / name)
    _save(merged.state_dict(), folder)


def interpolated(table: torch.Tensor, side: int) -> torch.Tensor:
    """A position table for ``side`` x ``side`` patches, as the original code resizes it."""
    old = round((table.shape[1] - 1) ** 0.5)
    if old == side or side < 1:
        return table
    patches = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        patches.float(), size=(side, side), mode="bicubic", align_corners=False
    )
    rows = resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
    return torch.cat([table[:, :1], rows], dim=1)


def _write_settings(state: Mapping[str, torch.Tensor], path: Path, folder: Path) -> None:
    """Configuration, image settings and vocabulary, as the original code has them."""
    parts = {name.partition(".")[0] for name in state}
    if "itm_head" in parts:
        task: Task = "itm"
    elif "text_decoder" in parts:
        task = "vqa" if "text_encoder" in parts else "caption"
    else:
        raise InputError(
            f"{shown(path)}: neither captions, questions nor retrieval; only those three kinds "
            "of the original BLIP code can be exported"
        )
    text = "text_encoder." if "text_encoder" in parts else "text_decoder.bert."
    try:
        words = state[f"{text}embeddings.word_embeddings.weight"].shape
        patches = state["vision_model.embeddings.patch_embedding.weight"].shape
        config: dict[str, Any] = {
            "architectures": [ARCHITECTURES[task]],
            "model_type": "blip",
            "image_text_hidden_size": len(state["vision_proj.bias"]) if task == "itm" else 256,
            "text_config": {
                "vocab_size": words[0],
                "hidden_size": words[1],
                "num_attention_heads": words[1] // _HEAD_SIZE,
                "num_hidden_layers": _layers(state, f"{text}encoder.layer."),
                "intermediate_size": len(state[f"{text}encoder.layer.0.intermediate.dense.bias"]),
                "max_position_embeddings": len(
                    state[f"{text}embeddings.position_embeddings.weight"]
                ),
            },
            "vision_config": {
                "image_size": round((state[_POSITIONS].shape[1] - 1) ** 0.5) * patches[2],
                "patch_size": patches[2],
                "hidden_size": patches[0],
                "num_attention_heads": patches[0] // _HEAD_SIZE,
                "num_hidden_layers": _layers(state, "vision_model.encoder.layers."),
                "intermediate_size": len(state["vision_model.encoder.layers.0.mlp.fc1.bias"]),
                "layer_norm_eps": 1e-6,
            },
        }
    except (KeyError, IndexError) as error:
        raise InputError(
            f"{shown(path)}: {error} is missing; copy or download the checkpoint again"
        ) from None
    size = config["vision_config"]["image_size"]
    images = {
        "image_processor_type": "BlipImageProcessor",
        "size": {"height": size, "width": size},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    for name, content in (
        (CONFIG, config),
        ("preprocessor_config.json", images),
        ("tokenizer_config.json", tokenizer),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    shutil.copyfile(_VOCABULARY, folder / "vocab.txt")


def _layers(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    return 1 + max(
        int(name.split(".")[prefix.count(".")]) for name in state if name.startswith(prefix)
    )


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _load(path: Path) -> Any:
    def read(*, mapped: bool) -> Any:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)

    try:
        try:
            return read(mapped=True)
        except RuntimeError:  # written before torch 1.6, not a zip file
            return read(mapped=False)
    except UnpicklingError:
        raise InputError(
            f"{shown(path)}: holds more than tensors, which could run code when it is read; save "
            "the model again with save_pretrained(folder)"
        ) from None
    except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{shown(path)}: not a whole file of torch.save ({reason}); copy or download it again"
        ) from None


def _tensors(content: Any, path: Path) -> dict[str, torch.Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{shown(path)}: holds no table of weights; save the model's state_dict()")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(
                f"{shown(path)}: {name}: {type(value).__name__} is no weight; save the model's "
                "state_dict() alone"
            )
    return dict(content)


def _save(state: Mapping[str, torch.Tensor], folder: Path) -> None:
    seen: set[int] = set()
    whole = {}
    for name, tensor in state.items():
        # Tied weights share memory, which safetensors cannot write.
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        whole[name] = (tensor.clone() if shared else tensor).contiguous()
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
