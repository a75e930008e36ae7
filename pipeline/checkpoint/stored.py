"""A task's checkpoint as the export found and left it: nothing is downloaded or converted here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from configs.errors import InputError
from configs.layout import Layout, checkpoint_folder
from configs.schema import Task
from pipeline.checkpoint.converted import entry, read_entry, small_files
from pipeline.checkpoint.files import ADAPTER, CONFIG, INDEXES, PICKLE, WEIGHTS, weight_names
from pipeline.checkpoint.tensors import combined, parameter_digests, read_tensors
from pipeline.manifest import file_sha256

#: ending of a file of the original code
ORIGINAL = ".pth"


def original_sources(path: Path) -> dict[str, str]:
    """What decides the conversion of an original file: itself, and the settings beside it."""
    settings = small_files(path.parent) if (path.parent / CONFIG).is_file() else {}
    return {ORIGINAL: file_sha256(path), **settings}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and the weights that it changes are elsewhere."""
    return (folder / ADAPTER).is_file() and not any(
        (folder / name).is_file() for name in (WEIGHTS, PICKLE, *INDEXES)
    )


def adapter_sources(folder: Path) -> dict[str, str]:
    """What decides a merged adapter, apart from the weights that it changes."""
    weights = sorted(folder.glob("adapter_model*"))
    adapter = {path.name: file_sha256(path) for path in (folder / ADAPTER, *weights)}
    return adapter | small_files(folder)


def is_pickle(names: Sequence[str]) -> bool:
    """Whether weight files have to be converted before their tensors can be read."""
    return names[0].startswith(Path(PICKLE).stem)


def model_folder(layout: Layout, task: Task, revision: str | None) -> Path:
    """The folder that HuggingFace's classes load a task's checkpoint from.

    ``revision`` is the commit that the task manifest names.

    Raises:
        InputError: it is not on this disk.
    """
    source = layout.pipeline.tasks[task].checkpoint
    cure = f"run: make export TASK={task}"
    folder = checkpoint_folder(source)
    if folder is None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            cached = snapshot_download(
                source, revision=revision, allow_patterns=[CONFIG], local_files_only=True
            )
        except LocalEntryNotFoundError:
            raise InputError(f"{source}: not in the hub's cache; {cure}") from None
        return Path(cached)
    if folder.suffix == ORIGINAL and folder.is_file():
        sources = original_sources(folder)
    elif is_adapter(folder):
        sources = adapter_sources(folder)
    else:
        return folder
    folder = entry(layout.converted, sources)
    if not folder.is_dir():
        raise InputError(f"{source}: not converted here yet; {cure}")
    return folder


def weights_sha256(layout: Layout, task: Task, revision: str | None) -> str:
    """Digest over name, type, shape and content of every parameter, as manifests record it.

    Raises:
        InputError: the weights are missing, damaged or not converted yet.
    """
    folder = model_folder(layout, task, revision)
    source = layout.pipeline.tasks[task].checkpoint
    if not folder.is_dir():
        raise InputError(f"{source}: no such checkpoint folder; restore it")
    names = weight_names(folder, [path.name for path in folder.iterdir()], source)
    if is_pickle(names):
        sources = {name: file_sha256(folder / name) for name in names}
        tensors = read_entry(entry(layout.converted, sources))
        if tensors is None:
            raise InputError(
                f"{source}: its weights were not exported here; run: make export TASK={task}, "
                "then compile again"
            )
    else:
        tensors = {}
        for name in names:
            tensors |= read_tensors(folder / name)
    return combined(parameter_digests(tensors))
