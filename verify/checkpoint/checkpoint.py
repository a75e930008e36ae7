"""A checkpoint in HuggingFace's own classes: float32, unpadded, as downloaded."""

from __future__ import annotations

import os
from typing import Any

from configs.errors import InputError
from configs.layout import checkpoint_folder
from configs.schema import Task

_CLASSES: dict[Task, str] = {
    "caption": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "itm": "BlipForImageTextRetrieval",
}


def load_model(
    task: Task, checkpoint: str, revision: str | None = None, *, attention: str | None = None
) -> Any:
    """A task's model in float32.

    Args:
        task: decides HuggingFace's class.
        checkpoint: folder or hub id, as pipeline files name it.
        revision: of a hub id.
        attention: HuggingFace's implementation; None for its default.

    Raises:
        InputError: it cannot be loaded.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    options = {"attn_implementation": attention} if attention else {}
    return _from(
        getattr(transformers, _CLASSES[task]), checkpoint, revision, dtype=torch.float32, **options
    ).eval()


def _from(kind: Any, checkpoint: str, revision: str | None, **options: Any) -> Any:
    folder = checkpoint_folder(checkpoint)
    if folder is None and revision:
        options["revision"] = revision
    try:
        return kind.from_pretrained(str(folder or checkpoint), **options)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{checkpoint}: cannot load the checkpoint: {reason}") from None
