"""Checkpoints on disk or on the model hub: where they lie, whether they are whole, their digests.

Free of torch and transformers, so that an unchanged pipeline is recognised in a fraction of a
second. Weights are safetensors only: other formats can run code when they are read.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.layout import checkpoint_folder
from configs.load import shown
from configs.schema import Task, TaskConfig
from export.files import CONFIG, IMAGE_FILES, PROCESSOR_FILES, WEIGHTS, WEIGHTS_INDEX
from pipeline.manifest import Checkpoint, file_sha256

ARCHITECTURES: dict[Task, str] = {
    "caption": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "itm": "BlipForImageTextRetrieval",
}

#: safetensors allows headers up to this many bytes
_MAXIMUM_HEADER = 100_000_000


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint that is complete and of the right architecture."""

    task: Task
    identity: Checkpoint
    folder: Path
    config_sha256: str
    #: digest of each file that decides preprocessing and tokenisation
    processor_sha256: dict[str, str]
    #: per parameter: digest over type, shape and content
    parameters: dict[str, str]

    def digest(self, names: list[str]) -> str:
        """Digest over some of the parameters."""
        return _combined({name: self.parameters[name] for name in names})


def _combined(digests: dict[str, str]) -> str:
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def inspect(task: Task, config: TaskConfig) -> CheckpointFiles:
    """Finds a task's checkpoint and checks it without loading it.

    Raises:
        InputError: missing, damaged, not safetensors, or another architecture.
        ToolError: the model hub cannot be reached.
    """
    folder = checkpoint_folder(config.checkpoint)
    revision = None
    if folder is None:
        from export.hub import download  # the hub client is slow to import

        folder, revision = download(config.checkpoint, config.revision)
    elif config.revision is not None:
        raise InputError(
            f"{config.checkpoint}: revision {config.revision} is given for a local folder; "
            "remove it, revisions exist for hub ids only"
        )
    if not folder.is_dir():
        raise InputError(
            f"{config.checkpoint}: no such checkpoint folder; give a folder in the HuggingFace "
            "format or a hub id (owner/name)"
        )
    settings = read_json(folder / CONFIG)
    check_architecture(task, settings, folder / CONFIG)
    parameters: dict[str, str] = {}
    for path in weight_files(folder):
        parameters |= _parameter_digests(path)
    processor = {
        name: file_sha256(folder / name) for name in PROCESSOR_FILES if (folder / name).is_file()
    }
    check_processor_files(processor, folder)
    return CheckpointFiles(
        task=task,
        identity=Checkpoint(
            source=config.checkpoint,
            revision=revision,
            weights_sha256=_combined(parameters),
            architecture=ARCHITECTURES[task],
        ),
        folder=folder,
        config_sha256=file_sha256(folder / CONFIG),
        processor_sha256=processor,
        parameters=parameters,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InputError: missing, unreadable or not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{shown(path)}: no such file; the checkpoint is not in the HuggingFace format"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{shown(path)}: cannot be read as JSON ({error}); restore the checkpoint"
        ) from None
    if not isinstance(data, dict):
        raise InputError(f"{shown(path)}: not a JSON object; restore the checkpoint")
    return data


def check_architecture(task: Task, settings: dict[str, Any], path: Path) -> None:
    """Refuses a checkpoint made for something else.

    Raises:
        InputError: naming the architecture found and the one needed.
    """
    found = settings.get("architectures") or [f"model_type {settings.get('model_type')}"]
    needed = ARCHITECTURES[task]
    if found != [needed]:
        names = ", ".join(str(name) for name in found)
        other = [name for name, architecture in ARCHITECTURES.items() if architecture in found]
        cure = f"use it for tasks.{other[0]}" if other else "choose a BLIP checkpoint"
        raise InputError(
            f"{shown(path)}: architectures: {names} cannot serve {task}, which needs {needed}; "
            f"{cure}"
        )


def check_processor_files(found: dict[str, str], folder: Path) -> None:
    """Refuses a checkpoint without preprocessing settings or vocabulary.

    Raises:
        InputError: naming what is missing.
    """
    needed = {
        "image settings": IMAGE_FILES,
        "a vocabulary": ("tokenizer.json", "vocab.txt"),
    }
    for what, names in needed.items():
        if not any(name in found for name in names):
            raise InputError(
                f"{shown(folder)}: {' or '.join(names)} is missing; add the checkpoint's file "
                f"with {what}"
            )


def weight_files(folder: Path) -> list[Path]:
    """The checkpoint's safetensors files, one or several shards.

    Raises:
        InputError: none, or a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / WEIGHTS_INDEX
    if not index.is_file():
        raise InputError(
            f"{shown(folder / WEIGHTS)}: no such file; only safetensors weights are read, so save "
            "the model again with save_pretrained(folder)"
        )
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise InputError(f"{shown(index)}: weight_map is missing; restore the checkpoint")
    shards = [folder / Path(str(name)).name for name in sorted(set(mapping.values()))]
    for shard in shards:
        if not shard.is_file():
            raise InputError(f"{shown(shard)}: no such file, but {WEIGHTS_INDEX} lists it; add it")
    return shards


def _header(view: bytes | mmap.mmap, path: Path) -> tuple[dict[str, Any], int]:
    """The parsed header of a safetensors file and where its data begins."""
    damaged = f"{shown(path)}: not a whole safetensors file"
    cure = "copy or download the checkpoint again"
    if len(view) < 8:
        raise InputError(f"{damaged} ({len(view)} bytes); {cure}")
    length = int.from_bytes(view[:8], "little")
    if not 2 <= length <= min(_MAXIMUM_HEADER, len(view) - 8):
        raise InputError(f"{damaged} (header of {length} bytes in {len(view)}); {cure}")
    try:
        header = json.loads(view[8 : 8 + length])
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise InputError(f"{damaged} (garbled header); {cure}") from None
    if not tensors or 8 + length + end != len(view):
        raise InputError(
            f"{damaged} ({len(view)} bytes, its header says {8 + length + end}); {cure}"
        )
    return tensors, 8 + length


def _parameter_digests(path: Path) -> dict[str, str]:
    """Digest of each tensor of a safetensors file.

    Raises:
        InputError: not a whole safetensors file.
    """
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise InputError(f"{shown(path)}: empty; copy or download the checkpoint again")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _digests(view, path)
    except OSError as error:
        raise InputError(
            f"{shown(path)}: cannot be read ({error.strerror}); check the file"
        ) from None


def _digests(view: mmap.mmap, path: Path) -> dict[str, str]:
    tensors, start = _header(view, path)

    def digest(entry: dict[str, Any]) -> str:
        begin, end = entry["data_offsets"]
        result = hashlib.sha256(f"{entry['dtype']} {entry['shape']}\n".encode())
        with memoryview(view) as data, data[start + begin : start + end] as content:
            result.update(content)
        return result.hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(tensors, pool.map(digest, tensors.values()), strict=True))
