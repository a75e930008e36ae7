"""Checkpoints in the HuggingFace format: the tokenizer, and folders swapped in whole."""

from __future__ import annotations

import shutil
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import BertTokenizerFast, BlipProcessor

from models.checkpoints.training.architecture import MODEL_CLASSES, Task

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DECODER_START, ENCODER_START = "[DEC]", "[ENC]"


def word_pieces(words: Iterable[str]) -> list[str]:
    """Special tokens, words, then every ASCII character alone and as a continuation.

    The characters make any Latin text tokenise into known pieces instead of ``[UNK]``.
    """
    letters = string.ascii_lowercase + string.digits
    characters = [*letters, *string.punctuation, *(f"##{letter}" for letter in letters)]
    return list(dict.fromkeys([*SPECIAL_TOKENS, *words, *characters]))


def build_tokenizer(pieces: list[str], longest: int) -> Any:
    """A lower-casing BERT tokenizer; ``[DEC]`` and ``[ENC]`` get the two ids after ``pieces``.

    ``longest`` is the number of tokens beyond which a text is truncated, where truncation is on.
    """
    tokenizer = BertTokenizerFast(
        vocab={piece: index for index, piece in enumerate(pieces)},
        do_lower_case=True,
        model_max_length=longest,
        additional_special_tokens=[ENCODER_START],
        bos_token=DECODER_START,
    )
    ids = tokenizer.convert_tokens_to_ids([DECODER_START, ENCODER_START])
    if ids != [len(pieces), len(pieces) + 1]:
        raise RuntimeError(f"[DEC], [ENC] have the ids {ids}, expected the two after the pieces")
    return tokenizer


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
    # One piece per line, without [DEC] and [ENC].
    (fresh / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
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
