"""Which pipeline file a folder of artifacts belongs to: two files of one name are noticed."""

from __future__ import annotations

import json
from pathlib import Path

from configs.errors import ConfigError
from configs.layout import REPOSITORY_ROOT, Layout
from configs.load import load_pipeline, shown
from pipeline.atomic import write_atomically
from pipeline.command import Selection
from pipeline.json_file import stored

OWNER_FILE = "pipeline.json"


def claim(selection: Selection, *, force: bool = False, keep: bool = True) -> None:
    """Notes the pipeline file in the folder of its artifacts; ``keep`` is False in a dry run.

    Raises:
        ConfigError: another file builds into the same folder, and ``force`` is not given.
        ToolError: the folder cannot be written.
    """
    root = Layout(selection.pipeline).root
    file = shown(selection.file.resolve())
    owner = stored(root / OWNER_FILE, lambda content: str(content["config"]))
    if owner == file:
        return
    if not force and owner is not None and _builds_into(root, REPOSITORY_ROOT / owner):
        raise ConfigError(
            f"{file}: name: {selection.pipeline.name!r} is also the name in {owner}, which built "
            f"{shown(root)}; give one of them another name, or take the folder over with FORCE=1"
        )
    if keep:
        write_atomically(root / OWNER_FILE, json.dumps({"config": file}) + "\n")


def _builds_into(root: Path, file: Path) -> bool:
    """Whether a file's artifacts go into a folder: not when it was renamed, or left elsewhere."""
    try:
        return Layout(load_pipeline(file)).root.resolve() == root.resolve()
    except ConfigError:
        return False
