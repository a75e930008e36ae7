"""Loads a checkpoint's weights into the HuggingFace model, or says why they do not fit."""

from __future__ import annotations

from typing import Any

import torch

from configs.errors import InputError
from configs.load import shown
from export.checkpoint import CheckpointFiles
from export.settings import read_config
from pipeline.checkpoint.tensors import BUFFER


def load_model(files: CheckpointFiles, image_size: int | None = None) -> Any:
    """The HuggingFace model in float32, in evaluation mode, without gradients.

    ``image_size`` is the side of the pictures where it is not the checkpoint's own.

    Raises:
        InputError: weights missing, of another shape, or not finite.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model_class = getattr(transformers, files.identity.architecture)
    where = shown(files.folder)
    try:
        model, report = model_class.from_pretrained(
            files.weights,
            config=read_config(files),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:
        # Wrong tensor shapes and unreadable tensors surface as exceptions of several libraries.
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{where}: weights do not fit the model of config.json ({reason}); "
            "use the config.json and weights of one checkpoint"
        ) from None
    unexpected = [name for name in report["unexpected_keys"] if not name.endswith(BUFFER)]
    if astray := [*report["missing_keys"], *report["mismatched_keys"], *unexpected]:
        raise InputError(
            f"{where}: {astray[0]} is not what the model of config.json needs; use a complete "
            "checkpoint"
        )
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(
                f"{where}: {name} holds values that are not finite; the checkpoint is damaged, "
                "copy or train it again"
            )
    model.eval()
    model.requires_grad_(False)
    if image_size is not None:
        embeddings = model.vision_model.embeddings
        tokens = torch.empty(
            1, (image_size // embeddings.patch_size) ** 2 + 1, embeddings.embed_dim
        )
        table = embeddings.interpolate_pos_encoding(tokens, image_size, image_size)
        embeddings.position_embedding = torch.nn.Parameter(table, requires_grad=False)
    return model
