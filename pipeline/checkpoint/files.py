"""A checkpoint's files: their names, and which of them hold the weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.load import shown
from pipeline.json_file import read_object

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PICKLE = "pytorch_model.bin"
ADAPTER = "adapter_config.json"
#: files that decide preprocessing
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
#: files that decide tokenisation
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)
PROCESSOR_FILES = (*IMAGE_FILES, *TEXT_FILES)
_INDEX = ".index.json"
#: what lists the shards of weights in several files
INDEXES = (WEIGHTS + _INDEX, PICKLE + _INDEX)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InputError: missing, unreadable or not a JSON object.
    """
    try:
        return read_object(path)
    except FileNotFoundError:
        raise InputError(
            f"{shown(path)}: no such file; the checkpoint is not in the HuggingFace format"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{shown(path)}: cannot be read as JSON ({error}); restore the checkpoint"
        ) from None


def weight_names(folder: Path, names: Collection[str], source: str) -> list[str]:
    """The weight files among ``names``: safetensors before pickles, one file before shards.

    ``folder`` holds the index of shards; ``source`` is what messages call the checkpoint.

    Raises:
        InputError: none, or a shard is missing.
    """
    if ADAPTER in names or any(name.startswith("adapter_model.") for name in names):
        raise InputError(
            f"{source}: holds an adapter (adapter_model), which the base weights do not contain; "
            "merge it: PeftModel.from_pretrained(base, adapter).merge_and_unload()"
            ".save_pretrained(folder), or remove it to build the base model"
        )
    for single in (WEIGHTS, PICKLE):
        if single in names:
            return [single]
        if single + _INDEX in names:
            return _shards(folder / (single + _INDEX), names)
    found = sorted(n for n in names if Path(n).suffix in (".safetensors", ".bin", ".pth", ".h5"))
    if len(found) == 1 and found[0].endswith(".safetensors"):
        cure = f"rename {found[0]} to {WEIGHTS}"
    elif any(name.endswith(".pth") for name in found):
        cure = "download the .pth and give its path as checkpoint"
    else:
        cure = "save the model again with save_pretrained(folder)"
    raise InputError(
        f"{source}: neither {WEIGHTS} nor {PICKLE}"
        f"{', but ' + ', '.join(found[:5]) if found else ''}; {cure}"
    )


def _shards(index: Path, names: Collection[str]) -> list[str]:
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise InputError(f"{shown(index)}: weight_map is missing; restore the checkpoint")
    shards = [Path(str(name)).name for name in sorted(set(mapping.values()))]
    for shard in shards:
        if shard not in names:
            raise InputError(
                f"{shown(index.parent / shard)}: no such file, but {index.name} lists it; add it"
            )
    return shards
