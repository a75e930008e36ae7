"""Writing checkpoints in the HuggingFace format, each folder swapped in whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import BlipProcessor

from models.checkpoints.training.architecture import MODEL_CLASSES, Task
from models.checkpoints.training.tokenizer import save_vocabulary


def checkpoint_folder(out: Path, task: Task) -> Path:
    """Return the folder of the reference checkpoint of a task."""
    return out / f"reference-{task}"


def save_checkpoint(
    folder: Path, model: Any, tokenizer: Any, image_processor: Any, pieces: list[str]
) -> None:
    """Write model, tokenizer and processor to ``folder``, replacing what was there at once."""
    fresh = folder.with_name(folder.name + ".new")
    stale = folder.with_name(folder.name + ".old")
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    image_processor.save_pretrained(fresh)
    BlipProcessor(image_processor, tokenizer).save_pretrained(fresh)
    save_vocabulary(pieces, fresh)
    for file in fresh.iterdir():
        file.chmod(0o644)
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)


def copy_matching_encoder(models: dict[Task, Any], start: Path) -> None:
    """Give the VQA model the text encoder of the saved matching model, which judges statements."""
    saved = MODEL_CLASSES["itm"].from_pretrained(checkpoint_folder(start, "itm"))
    models["vqa"].text_encoder.load_state_dict(saved.text_encoder.state_dict())


def load_weights(models: dict[Task, Any], tasks: tuple[Task, ...], start: Path) -> None:
    """Load the tasks' weights from checkpoints; a shared vision encoder gets the last one's."""
    for task in tasks:
        saved = MODEL_CLASSES[task].from_pretrained(checkpoint_folder(start, task))
        models[task].load_state_dict(saved.state_dict())
