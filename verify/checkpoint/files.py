"""Whether a checkpoint on this disk is the one that artifacts were exported from."""

from __future__ import annotations

import hashlib
import json
import mmap
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.layout import checkpoint_folder
from configs.load import shown
from configs.schema import TaskConfig
from pipeline.manifest import TaskManifest, file_sha256


def check_checkpoint(config: TaskConfig, manifest: TaskManifest) -> None:
    """Compares a local checkpoint's weights with the task manifest; hub revisions are pinned.

    Raises:
        InputError: the checkpoint is missing, damaged or another one.
    """
    folder = checkpoint_folder(config.checkpoint)
    if folder is None:
        return
    if weights_sha256(folder) != manifest.checkpoint.weights_sha256:
        raise InputError(
            f"{shown(folder)}: not the weights that {manifest.task} was exported from; "
            f"run: make export TASK={manifest.task}, then compile again"
        )


def checkpoint_files(config: TaskConfig) -> dict[str, str]:
    """Digests of a local checkpoint's settings and tokenizer; its weights are checked apart."""
    folder = checkpoint_folder(config.checkpoint)
    if folder is None:
        return {}
    names = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt"))
    return {path.name: file_sha256(path) for path in names}


def weights_sha256(folder: Path) -> str:
    """Digest over name, type, shape and content of every parameter, as manifests record it.

    Raises:
        InputError: no safetensors file, or a damaged one.
    """
    paths = sorted(folder.glob("model*.safetensors"))
    if not paths:
        raise InputError(
            f"{shown(folder)}: no safetensors weights; restore the checkpoint, verification "
            "compares with it"
        )
    digests: dict[str, str] = {}
    for path in paths:
        try:
            with (
                path.open("rb") as stream,
                mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view,
            ):
                digests |= _parameters(view)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{shown(path)}: damaged ({error}); copy the checkpoint again"
            ) from None
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def _parameters(view: mmap.mmap) -> dict[str, str]:
    length = int.from_bytes(view[:8], "little")
    header: dict[str, Any] = json.loads(view[8 : 8 + length])
    header.pop("__metadata__", None)
    digests = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        result = hashlib.sha256(f"{entry['dtype']} {entry['shape']}\n".encode())
        with memoryview(view) as data, data[begin:end] as content:
            result.update(content)
        digests[name] = result.hexdigest()
    return digests
