"""A checkpoint in HuggingFace's own classes: float32, unpadded, as downloaded.

torch and transformers are imported when a checkpoint is loaded, not before: most runs of ``verify``
find everything that a checkpoint answers on the disk.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from configs.errors import InputError
from configs.layout import Layout, checkpoint_folder
from configs.schema import Component, Task
from pipeline.checkpoint.stored import model_folder
from pipeline.checkpoint.tensors import BUFFER

#: Added to a score where attention is not allowed, as HuggingFace's BLIP does it.
MASKED = -10000.0
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
        InputError: it cannot be loaded, or HuggingFace leaves out or makes up a part of it.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    options |= {"dtype": torch.float32, "output_loading_info": True}
    model, report = _from(getattr(transformers, _CLASSES[task]), checkpoint, revision, **options)
    unexpected = [name for name in report["unexpected_keys"] if not name.endswith(BUFFER)]
    if astray := [*report["missing_keys"], *report["mismatched_keys"], *unexpected]:
        raise InputError(
            f"{checkpoint}: HuggingFace does not load {astray[0]} as it is stored, so this is no "
            "reference; use a checkpoint whose weights are those of its config.json"
        )
    return model.eval()


def _from(kind: Any, checkpoint: str, revision: str | None = None, **options: Any) -> Any:
    folder = checkpoint_folder(checkpoint)
    if folder is None and revision:
        options["revision"] = revision
    try:
        return kind.from_pretrained(str(folder or checkpoint), **options)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{checkpoint}: cannot load the checkpoint: {reason}") from None


class Checkpoint:
    """Model, tokenizer and image processor of one task."""

    def __init__(self, layout: Layout, task: Task, revision: str | None) -> None:
        """Loads them from the folder that the export left; ``revision`` is the manifest's.

        Raises:
            InputError: they cannot be loaded.
        """
        self.task = task
        self.start_with_encoder_token = layout.pipeline.tasks[task].question_start == "enc"
        folder = str(model_folder(layout, task, revision))
        self.model = load_model(task, folder, attention="eager")
        import torch
        from transformers import AutoTokenizer
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

        self._torch = torch
        self.tokenizer: Any = _from(AutoTokenizer, folder)
        # Named explicitly: which one `AutoProcessor` takes depends on what else is installed.
        self.processor: Any = _from(BlipImageProcessorPil, folder)
        if size := layout.pipeline.tasks[task].image_size:
            self._resize(size)

    def _resize(self, size: int) -> None:
        """Takes pictures of another size, as HuggingFace with ``interpolate_pos_encoding=True``."""
        embeddings = self.model.vision_model.embeddings
        tokens = self._torch.empty(
            1, (size // embeddings.patch_size) ** 2 + 1, embeddings.embed_dim
        )
        table = embeddings.interpolate_pos_encoding(tokens, size, size)
        embeddings.position_embedding = self._torch.nn.Parameter(table, requires_grad=False)
        self.processor.size = {"height": size, "width": size}

    @property
    def text_config(self) -> Any:
        """Token ids and sizes of the text model."""
        return self.model.config.text_config

    @property
    def end_token(self) -> int:
        """Id of the token that ends an answer."""
        return int(self.text_config.sep_token_id)

    @property
    def encoder_token(self) -> int | None:
        """Id of [ENC]: as the tokenizer names it, else the one after [DEC] if it names neither."""
        named = self.tokenizer.get_vocab().get("[ENC]")
        if named is not None:
            return int(named)
        follower = int(self.text_config.bos_token_id) + 1
        return follower if len(self.tokenizer) <= follower < self.text_config.vocab_size else None

    @cached_property
    def parameters(self) -> dict[str, NDArray[Any]]:
        """Every parameter by HuggingFace's name; tied ones under all their names."""
        named = self.model.named_parameters(remove_duplicate=False)
        return {name: value.detach().numpy() for name, value in named}

    @cached_property
    def modules(self) -> dict[str, Any]:
        """Every module by HuggingFace's name."""
        return dict(self.model.named_modules())

    def layers(self, component: Component) -> int:
        """Layers of one component."""
        config = self.model.config
        if component == "vision_encoder":
            return int(config.vision_config.num_hidden_layers)
        return int(config.text_config.num_hidden_layers)

    def pixel_values(self, images: Sequence[Image]) -> Any:
        """``[images, 3, height, width]`` in torch."""
        return self.processor(list(images), return_tensors="pt")["pixel_values"]

    def token_ids(self, text: str, *, encoded: bool = False) -> list[int]:
        """Ids of a text; ``encoded``: as the text encoder that attends an image gets them."""
        ids = [int(token) for token in self.tokenizer(text)["input_ids"]]
        if encoded and self.start_with_encoder_token:
            ids[0] = self.encoder_token or ids[0]
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def prompt_tokens(self, text: str) -> int:
        """How many tokens of a generated sequence come before the first new one."""
        return 1 if self.task == "vqa" else len(self.token_ids(text)) - 1

    def generate(
        self, images: Sequence[Image], texts: Sequence[str], **arguments: Any
    ) -> tuple[list[tuple[int, ...]], list[NDArray[np.float32]]]:
        """HuggingFace's ``generate`` over texts of equal length: nothing is padded.

        Returns:
            Each sequence to its end token, the prompt included; per step the logits of all rows.
        """
        torch = self._torch
        ids = torch.tensor([self.token_ids(t, encoded=self.task == "vqa") for t in texts])
        with torch.inference_mode(), warnings.catch_warnings():
            # Lengths that cannot be kept are part of what is compared.
            warnings.simplefilter("ignore", UserWarning)
            found = self.model.generate(
                pixel_values=self.pixel_values(images),
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                **arguments,
            )
        prompt, end = self.prompt_tokens(texts[0]), self.end_token
        sequences = [
            tuple(tokens[: tokens.index(end, prompt) + 1] if end in tokens[prompt:] else tokens)
            for tokens in found.sequences.tolist()
        ]
        return sequences, [step.float().numpy() for step in found.logits]
