"""Sizes and token ids of a checkpoint, checked for whether its graphs can be built at all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.errors import ConfigError, InputError
from configs.load import shown
from configs.schema import StaticShapes, Task
from export.checkpoint import CheckpointFiles
from pipeline.checkpoint.files import CONFIG, read_json
from pipeline.manifest import Dimensions


@dataclass(frozen=True)
class ModelSettings:
    """What the components need to know about a checkpoint."""

    task: Task
    image_size: int
    image_tokens: int
    vision_hidden_size: int
    #: width of the states that the text model's cross-attention reads
    encoder_hidden_size: int
    hidden_size: int
    layers: int
    heads: int
    head_size: int
    vocabulary_size: int
    maximum_positions: int
    #: width of contrastive features (itm)
    feature_size: int
    start_token_id: int
    end_token_id: int
    pad_token_id: int
    #: whether ``image_size`` is not the checkpoint's own
    resized: bool = False

    def dimensions(self) -> Dimensions:
        """As the task manifest records them."""
        return Dimensions(
            layers=self.layers,
            heads=self.heads,
            head_size=self.head_size,
            hidden_size=self.hidden_size,
            vision_hidden_size=self.vision_hidden_size,
            image_tokens=self.image_tokens,
            feature_size=self.feature_size if self.task == "itm" else None,
        )


def read_config(files: CheckpointFiles) -> Any:
    """Reads config.json as HuggingFace's class, with its defaults for what is left out.

    Raises:
        InputError: no valid configuration, or one that changes what the model returns.
    """
    from transformers import BlipConfig

    path = files.folder / CONFIG
    settings = read_json(path)
    for section in (settings, settings.get("text_config"), settings.get("vision_config")):
        if isinstance(section, dict) and section.get("return_dict") is False:
            raise InputError(f"{shown(path)}: return_dict: must not be false; remove the key")
    try:
        return BlipConfig.from_dict(settings)
    except Exception as error:
        # transformers validates with exceptions of its own and of its dependencies.
        reason = " ".join(str(error).split())
        raise InputError(
            f"{shown(path)}: not a valid BLIP configuration ({reason}); correct the value"
        ) from None


def read_settings(files: CheckpointFiles, image_size: int | None = None) -> ModelSettings:
    """Reads and checks config.json; ``image_size`` is what the pipeline file wants instead.

    Raises:
        InputError: a value with which no model can be built, naming its key.
        ConfigError: the wanted size is no multiple of the patches'.
    """
    config = read_config(files)
    settings = _checked(files.task, config, files.folder / CONFIG)
    patch = config.vision_config.patch_size
    if image_size is None:
        return settings
    if image_size % patch:
        raise ConfigError(
            f"tasks.{files.task}.image_size: {image_size} is not a multiple of the checkpoint's "
            f"patch size {patch}; choose {max(1, image_size // patch) * patch}"
        )
    return replace(
        settings, image_size=image_size, image_tokens=(image_size // patch) ** 2 + 1, resized=True
    )


def _checked(task: Task, config: Any, path: Path) -> ModelSettings:
    # Here, not above: an unchanged run must not wait for torch to load.
    from transformers.activations import ACT2FN

    text, vision = config.text_config, config.vision_config

    def refuse(key: str, what: str) -> InputError:
        return InputError(f"{shown(path)}: {key}: {what}")

    for section, part, keys in (
        ("vision_config", vision, ("image_size", "patch_size", "num_hidden_layers")),
        ("vision_config", vision, ("hidden_size", "num_attention_heads")),
        ("text_config", text, ("vocab_size", "max_position_embeddings", "num_hidden_layers")),
        ("text_config", text, ("hidden_size", "num_attention_heads")),
    ):
        for key in keys:
            value = getattr(part, key)
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise refuse(f"{section}.{key}", f"{value!r} is not a positive whole number")
    if vision.image_size % vision.patch_size:
        raise refuse(
            "vision_config.image_size",
            f"{vision.image_size} is not a multiple of patch_size {vision.patch_size}; "
            "choose one that is",
        )
    for section, part in (("vision_config", vision), ("text_config", text)):
        if part.hidden_size % part.num_attention_heads:
            raise refuse(
                f"{section}.hidden_size",
                f"{part.hidden_size} is not a multiple of num_attention_heads "
                f"{part.num_attention_heads}; choose one that is",
            )
        # With none, a row of equal values would be divided by zero.
        if not isinstance(part.layer_norm_eps, float) or part.layer_norm_eps <= 0:
            raise refuse(f"{section}.layer_norm_eps", f"{part.layer_norm_eps!r} must be above zero")
        if part.hidden_act not in ACT2FN:
            raise refuse(
                f"{section}.hidden_act",
                f"{part.hidden_act!r} is no activation that transformers knows; name one",
            )
    if not text.is_decoder:
        raise refuse("text_config.is_decoder", "must be true: BLIP's text attends the image")
    if task == "vqa" and vision.hidden_size != text.hidden_size:
        raise refuse(
            "vision_config.hidden_size",
            f"{vision.hidden_size} differs from the text's {text.hidden_size}, so the answer "
            "decoder cannot read the question's states; HuggingFace cannot run it either",
        )
    for key in ("bos_token_id", "sep_token_id", "pad_token_id"):
        value = getattr(text, key)
        if not isinstance(value, int) or not 0 <= value < text.vocab_size:
            raise refuse(f"text_config.{key}", f"{value!r} is no id below {text.vocab_size}")
    return ModelSettings(
        task=task,
        image_size=vision.image_size,
        image_tokens=(vision.image_size // vision.patch_size) ** 2 + 1,
        vision_hidden_size=vision.hidden_size,
        encoder_hidden_size=text.encoder_hidden_size,
        hidden_size=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        head_size=text.hidden_size // text.num_attention_heads,
        vocabulary_size=text.vocab_size,
        maximum_positions=text.max_position_embeddings,
        feature_size=config.image_text_hidden_size,
        start_token_id=text.bos_token_id,
        end_token_id=text.sep_token_id,
        pad_token_id=text.pad_token_id,
    )


def check_shapes(settings: ModelSettings, shapes: StaticShapes) -> None:
    """Refuses static lengths beyond the checkpoint's position table.

    Raises:
        ConfigError: naming the key of the pipeline file.
    """
    where = f"tasks.{settings.task}.shapes"
    limit = settings.maximum_positions
    if shapes.text_tokens > limit:
        raise ConfigError(
            f"{where}.text_tokens: {shapes.text_tokens} exceeds the checkpoint's {limit} "
            "positions; choose less"
        )
    if shapes.past_tokens is not None and shapes.past_tokens >= limit:
        raise ConfigError(
            f"{where}.past_tokens: {shapes.past_tokens} leaves no position for a new token of the "
            f"checkpoint's {limit}; choose less"
        )
