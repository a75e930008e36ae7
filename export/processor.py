"""The checkpoint's tokenizer and image settings, in the form the runtime reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.load import shown
from configs.schema import TaskConfig
from export.checkpoint import CheckpointFiles
from export.settings import ModelSettings
from pipeline.manifest import ImageSettings, TextSettings

FOLDER = "processor"
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_ENCODER_START = "[ENC]"


@dataclass(frozen=True)
class Processor:
    """HuggingFace's Pillow image processor and fast tokenizer of a checkpoint."""

    image_processor: Any
    tokenizer: Any


def load_processor(files: CheckpointFiles, settings: ModelSettings) -> Processor:
    """Loads and checks both.

    The Pillow image processor is named explicitly: which one transformers picks by itself depends
    on what else is installed, and they differ slightly.

    Raises:
        InputError: unreadable files, or settings that the model cannot take.
    """
    from transformers import AutoTokenizer, BlipImageProcessorPil

    where = shown(files.folder)
    size = settings.image_size
    options = {"size": {"height": size, "width": size}} if settings.resized else {}
    try:
        image_processor = BlipImageProcessorPil.from_pretrained(
            files.folder, local_files_only=True, **options
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{where}: image settings cannot be read ({reason}); restore preprocessor_config.json"
        ) from None
    _check_image_processor(image_processor, settings, where)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            files.folder, use_fast=True, local_files_only=True, trust_remote_code=False
        )
        tokenizer.backend_tokenizer.to_str()
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{where}: tokenizer cannot be read ({reason}); restore tokenizer.json or vocab.txt"
        ) from None
    if len(tokenizer) > settings.vocabulary_size:
        raise InputError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens, text_config.vocab_size is "
            f"{settings.vocabulary_size}; use the files of one checkpoint"
        )
    return Processor(image_processor, tokenizer)


def _check_image_processor(processor: Any, settings: ModelSettings, where: str) -> None:
    for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if not getattr(processor, name):
            raise InputError(f"{where}: preprocessor_config.json: {name} must be true")
    size = processor.size
    if (size.height, size.width) != (settings.image_size, settings.image_size):
        raise InputError(
            f"{where}: preprocessor_config.json: size {size.height} x {size.width} differs from "
            f"vision_config.image_size {settings.image_size}; make them equal, or choose a size "
            f"with tasks.{settings.task}.image_size: {size.height}"
        )
    if int(processor.resample) not in _RESAMPLE:
        known = ", ".join(f"{number} ({name})" for number, name in _RESAMPLE.items())
        raise InputError(
            f"{where}: preprocessor_config.json: resample {int(processor.resample)} is unknown; "
            f"choose from: {known}"
        )


def image_settings(processor: Processor) -> ImageSettings:
    """As the task manifest records them."""
    source = processor.image_processor
    return ImageSettings(
        height=source.size.height,
        width=source.size.width,
        resample=_RESAMPLE[int(source.resample)],  # type: ignore[arg-type]
        rescale_factor=source.rescale_factor,
        mean=tuple(source.image_mean),
        std=tuple(source.image_std),
    )


def text_settings(
    processor: Processor, settings: ModelSettings, config: TaskConfig
) -> TextSettings:
    """As the task manifest records them.

    Raises:
        InputError: questions are to start with [ENC], which the checkpoint does not have.
    """
    tokenizer = processor.tokenizer
    encoder_start = _encoder_start(tokenizer, settings)
    if config.question_start == "enc" and encoder_start is None:
        raise InputError(
            f"tasks.{settings.task}.question_start: enc: the checkpoint has no {_ENCODER_START} "
            "token; use cls"
        )
    return TextSettings(
        start_token_id=settings.start_token_id,
        end_token_id=settings.end_token_id,
        pad_token_id=settings.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        enc_token_id=encoder_start,
        vocabulary_size=settings.vocabulary_size,
        question_start=config.question_start,
        maximum_positions=settings.maximum_positions,
        lower_case=bool(getattr(tokenizer, "do_lower_case", True)),
    )


def _encoder_start(tokenizer: Any, settings: ModelSettings) -> int | None:
    known: int | None = tokenizer.get_vocab().get(_ENCODER_START)
    if known is not None:
        return known
    # The public checkpoints' tokenizers do not name it; the original code adds [DEC], then [ENC].
    follower = settings.start_token_id + 1
    return follower if len(tokenizer) <= follower < settings.vocabulary_size else None


def write_processor(processor: Processor, folder: Path) -> list[Path]:
    """Writes the tokenizer and image settings into ``folder``; returns the files.

    The tokenizer pads and truncates nothing by itself: lengths are the runtime's business.
    """
    folder.mkdir(parents=True)
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    path = folder / "tokenizer.json"
    rules = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    rules["padding"] = rules["truncation"] = None
    path.write_text(json.dumps(rules, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return sorted(folder.iterdir())
