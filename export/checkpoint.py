"""Checkpoints in a folder, in a file of the original code or on the model hub: found and checked.

Free of torch and transformers, so that an unchanged pipeline is recognised in a fraction of a
second. Nothing that could run code is read: pickles are converted by ``export.conversion``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import InputError, ToolError
from configs.layout import checkpoint_folder
from configs.load import shown
from configs.schema import Task, TaskConfig
from pipeline.checkpoint.converted import converted, entry, small_files
from pipeline.checkpoint.files import (
    ADAPTER,
    CONFIG,
    IMAGE_FILES,
    PROCESSOR_FILES,
    read_json,
    weight_names,
)
from pipeline.checkpoint.stored import (
    ORIGINAL,
    adapter_sources,
    is_adapter,
    is_pickle,
    original_sources,
)
from pipeline.checkpoint.tensors import (
    Tensor,
    checked_sha256,
    combined,
    parameter_digests,
    read_tensors,
)
from pipeline.manifest import Checkpoint

if TYPE_CHECKING:
    from export.hub import Remote

ARCHITECTURES: dict[Task, str] = {
    "caption": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "itm": "BlipForImageTextRetrieval",
}


@dataclass(frozen=True)
class Source:
    """A task's checkpoint: what it consists of, and what of that is still on the hub."""

    task: Task
    name: str
    #: folder of the small files; of a hub checkpoint, its place in the hub's cache
    folder: Path
    #: small files and weights; one file of the original code
    files: tuple[str, ...]
    weights: tuple[str, ...]
    remote: Remote | None = None
    #: folder of an adapter that is merged into the weights
    adapter: Path | None = None

    @property
    def revision(self) -> str | None:
        """The hub's commit."""
        return self.remote.commit if self.remote else None

    @property
    def missing(self) -> Mapping[str, int]:
        """Sizes of files to be downloaded."""
        return self.remote.missing([*self.files, *self.weights]) if self.remote else {}


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint that is complete and of the right architecture."""

    task: Task
    identity: Checkpoint
    #: folder of config.json and the processor's files
    folder: Path
    #: folder of the safetensors weights
    weights: Path
    config_sha256: str
    #: digest of each file that decides preprocessing and tokenisation
    processor_sha256: dict[str, str]
    #: every tensor that is stored
    tensors: Mapping[str, Tensor]
    #: per parameter: digest over type, shape and content
    parameters: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", parameter_digests(self.tensors))

    def digest(self, names: list[str]) -> str:
        """Digest over some of the parameters."""
        return combined({name: self.parameters[name] for name in names})


def find(task: Task, config: TaskConfig) -> Source:
    """Finds a task's checkpoint; of one on the hub it downloads the configuration only.

    Raises:
        InputError: missing, incomplete, of an unknown format, or of another architecture.
        ToolError: the model hub cannot be reached.
    """
    folder = checkpoint_folder(config.checkpoint)
    if folder is None:
        return _on_hub(task, config)
    if config.revision is not None:
        raise InputError(
            f"{config.checkpoint}: revision {config.revision} is given for a local folder; "
            "remove it, revisions exist for hub ids only"
        )
    if folder.suffix == ORIGINAL and folder.is_file():
        if (folder.parent / CONFIG).is_file():
            path = folder.parent / CONFIG
            check_architecture(task, read_json(path), shown(path))
        return Source(task, config.checkpoint, folder.parent, (), (folder.name,))
    if not folder.is_dir():
        from export.hub import likely_id  # the hub client is slow to import

        raise InputError(
            f"{config.checkpoint}: no such checkpoint folder; {likely_id(config.checkpoint)}"
        )
    if is_adapter(folder):
        return _adapter(task, config, folder)
    names = {path.name for path in folder.iterdir() if path.is_file()}
    return _described(task, config.checkpoint, folder, names)


def _adapter(task: Task, config: TaskConfig, folder: Path) -> Source:
    """The checkpoint that an adapter changes, which its configuration names."""
    settings = read_json(folder / ADAPTER)
    base = settings.get("base_model_name_or_path")
    if not base or find_spec("peft") is None:
        raise InputError(
            f"{shown(folder)}: an adapter of {base or 'an unnamed checkpoint'}; to have it merged "
            f"here name the base in {ADAPTER} and run: .venv/bin/pip install peft; or merge it: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"
        )
    changes = {"checkpoint": str(base), "revision": settings.get("revision")}
    source = find(task, config.model_copy(update=changes))
    return replace(source, name=config.checkpoint, adapter=folder)


def _on_hub(task: Task, config: TaskConfig) -> Source:
    from export.hub import look_up

    remote = look_up(config.checkpoint, config.revision)
    where = f"{config.checkpoint} at {remote.commit[:7]}"
    if CONFIG not in remote.sizes:
        raise InputError(
            f"{where}: not in the HuggingFace format; it holds "
            f"{', '.join(sorted(remote.sizes)[:6]) or 'nothing'}; download a .pth file and give "
            "its path as checkpoint"
        )
    try:
        return _described(task, where, remote.folder, remote.sizes, remote)
    except InputError:
        if remote.listed:
            raise
        raise ToolError(
            f"{where}: the hub's cache holds a part of it only and the hub cannot be asked for "
            "the rest; run again with network"
        ) from None


def _described(
    task: Task, name: str, folder: Path, names: Collection[str], remote: Remote | None = None
) -> Source:
    where = name if remote else shown(folder)
    check_architecture(task, read_json(folder / CONFIG), f"{where}/{CONFIG}")
    weights = weight_names(folder, names, where)
    small = [CONFIG, *(name for name in PROCESSOR_FILES if name in names)]
    check_processor_files(small, where)
    return Source(
        task, remote.name if remote else name, folder, tuple(small), tuple(weights), remote
    )


def inspect(source: Source, store: Path) -> CheckpointFiles:
    """Downloads what is missing and checks it without loading it.

    Other formats than safetensors are converted into ``store``, once.

    Raises:
        InputError: damaged, or not what its listing says.
        ToolError: the model hub cannot be reached, or the disk is full.
    """
    expected: dict[str, str | None] = {}
    if source.remote is not None:
        from export.hub import download

        expected = download(source.remote, [*source.files, *source.weights])
        for name in source.files:
            checked_sha256(source.folder / name, expected[name])
    weights, tensors = _weights(source, expected, store)
    folder = source.folder if (source.folder / CONFIG).is_file() else weights
    check_architecture(source.task, read_json(folder / CONFIG), shown(folder / CONFIG))
    files = _files(source, folder, weights, tensors)
    return files if source.adapter is None else _merged(source, files, source.adapter, store)


def _merged(source: Source, base: CheckpointFiles, adapter: Path, store: Path) -> CheckpointFiles:
    def merge(new: Path) -> None:
        from export.conversion import merge_adapter

        merge_adapter(base, adapter, new)

    folder = entry(store, adapter_sources(adapter))
    tensors = converted(folder, merge, base.identity.weights_sha256 + base.config_sha256)
    return _files(replace(source, remote=None), folder, folder, tensors)


def _files(
    source: Source, folder: Path, weights: Path, tensors: Mapping[str, Tensor]
) -> CheckpointFiles:
    small = small_files(folder)
    config_sha256 = small.pop(CONFIG)
    return CheckpointFiles(
        task=source.task,
        identity=Checkpoint(
            source=source.name,
            revision=source.revision,
            weights_sha256=combined(parameter_digests(tensors)),
            architecture=ARCHITECTURES[source.task],
        ),
        folder=folder,
        weights=weights,
        config_sha256=config_sha256,
        processor_sha256=small,
        tensors=tensors,
    )


def _weights(
    source: Source, expected: Mapping[str, str | None], store: Path
) -> tuple[Path, dict[str, Tensor]]:
    """A folder that holds the weights as safetensors, and their tensors."""
    paths = [source.folder / name for name in source.weights]
    if paths[0].suffix == ORIGINAL:
        folder = entry(store, original_sources(paths[0]))

        def original(new: Path) -> None:
            from export.conversion import convert_original  # torch is slow to import

            convert_original(paths[0], new)

        return folder, converted(folder, original)
    if is_pickle(source.weights):
        folder = entry(store, {p.name: checked_sha256(p, expected.get(p.name)) for p in paths})

        def pickles(new: Path) -> None:
            from export.conversion import convert_pickles

            convert_pickles(paths, new)

        return folder, converted(folder, pickles)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= read_tensors(path, expected.get(path.name))
    return source.folder, tensors


def check_architecture(task: Task, settings: dict[str, Any], where: str) -> None:
    """Refuses a checkpoint made for something else.

    Raises:
        InputError: naming the architecture found and the one needed.
    """
    needed = ARCHITECTURES[task]
    found = settings.get("architectures")
    if not found and settings.get("model_type") == "blip":
        raise InputError(f'{where}: architectures is missing; add "architectures": ["{needed}"]')
    found = found or [f"model_type {settings.get('model_type')}"]
    if found != [needed]:
        names = ", ".join(str(name) for name in found)
        other = [name for name, architecture in ARCHITECTURES.items() if architecture in found]
        cure = f"use it for tasks.{other[0]}" if other else "choose a BLIP checkpoint"
        raise InputError(
            f"{where}: architectures: {names} cannot serve {task}, which needs {needed}; {cure}"
        )


def check_processor_files(found: Collection[str], where: str) -> None:
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
                f"{where}: {' or '.join(names)} is missing; add the checkpoint's file with {what}"
            )
