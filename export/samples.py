"""Real inputs: procedurally drawn scenes, their texts, and HuggingFace's own cached decoding."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from export.processor import Processor
from export.settings import ModelSettings
from pipeline.scenes import CAPTION_PROMPT, caption, draw, matching_pairs, questions, scenes

#: held-out scenes that reference data is made of
SCENE_COUNT = 2


class DecoderRun:
    """HuggingFace's text decoder with its own cache, over one batch of encoder states."""

    def __init__(self, decoder: Any, states: torch.Tensor) -> None:
        self._decoder = decoder
        self._states = states
        self._cache: Any = None
        self.length = 0

    def feed(
        self,
        ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Decodes ``[batch, tokens]``: last logits and the new rows, in the contract's names."""
        result = self._decoder(
            input_ids=ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            encoder_hidden_states=self._states,
            encoder_attention_mask=torch.ones(self._states.shape[:2]).long(),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = result.past_key_values
        before, self.length = self.length, self.length + ids.shape[1]
        rows = self._rows("new", self._cache.self_attention_cache, before)
        return {"logits": result.logits[:, -1], **rows}

    def past(self) -> dict[str, torch.Tensor]:
        """``past.<layer>.key/value`` so far, ``[batch, length, heads, head_size]``."""
        if self._cache is not None:
            return self._rows("past", self._cache.self_attention_cache, 0)
        text = self._decoder.config
        heads = text.num_attention_heads
        empty = torch.zeros(self._states.shape[0], 0, heads, text.hidden_size // heads)
        layers = range(text.num_hidden_layers)
        return {f"past.{layer}.{part}": empty for layer in layers for part in ("key", "value")}

    def cross(self) -> dict[str, torch.Tensor]:
        """``cross.<layer>.key/value``; only after something was fed."""
        return self._rows("cross", self._cache.cross_attention_cache, 0)

    @staticmethod
    def _rows(prefix: str, cache: Any, start: int) -> dict[str, torch.Tensor]:
        rows = {}
        for index, layer in enumerate(cache.layers):
            rows[f"{prefix}.{index}.key"] = layer.keys[:, :, start:].transpose(1, 2)
            rows[f"{prefix}.{index}.value"] = layer.values[:, :, start:].transpose(1, 2)
        return rows


class Samples:
    """Inputs of every kind for one model, computed once and shared by its components."""

    def __init__(self, model: Any, processor: Processor, settings: ModelSettings) -> None:
        self.model = model
        self.settings = settings
        self._processor = processor
        self._scenes = list(scenes(SCENE_COUNT))
        self._image_embeds: dict[int, torch.Tensor] = {}

    @property
    def scene_count(self) -> int:
        """How many images there are."""
        return len(self._scenes)

    def pixel_values(self, index: int) -> torch.Tensor:
        """``[1, 3, image, image]``, as HuggingFace's image processor makes them."""
        image = draw(self._scenes[index])
        result = self._processor.image_processor(images=image, return_tensors="pt")
        pixels: torch.Tensor = result["pixel_values"]
        return pixels

    def image_embeds(self, index: int) -> torch.Tensor:
        """``[1, image_tokens, hidden]`` from the checkpoint's own vision tower."""
        if index not in self._image_embeds:
            result = self.model.vision_model(pixel_values=self.pixel_values(index))
            self._image_embeds[index] = result.last_hidden_state
        return self._image_embeds[index]

    def token_ids(self, text: str) -> torch.Tensor:
        """``[1, tokens]`` with [CLS] and [SEP], cut to the position table."""
        limit = self.settings.maximum_positions
        ids = self._processor.tokenizer(text, truncation=True, max_length=limit).input_ids
        return torch.tensor([ids])

    @cached_property
    def _texts(self) -> list[tuple[int, torch.Tensor]]:
        # Neighbours differ in length: padding matters when they are batched.
        choices: list[tuple[int, Callable[..., str]]] = [(0, min), (1, max), (0, max)]
        found = []
        for index, choose in choices:
            scene = self._scenes[index]
            if self.settings.task == "vqa":
                texts = [item.question for item in questions(scene)]
            else:
                texts = [pair.text for pair in matching_pairs(scene)]
            found.append((index, self.token_ids(choose(texts, key=len))))
        return found

    def texts(self) -> list[tuple[int, torch.Tensor]]:
        """Questions or texts of several lengths: scene index and ids ``[1, tokens]``."""
        return self._texts

    def padded_right(self, ids: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask ``[batch, length]``, never longer than the position table."""
        pads = max(0, min(length, self.settings.maximum_positions) - ids.shape[1])
        mask = torch.nn.functional.pad(torch.ones_like(ids), (0, pads))
        return torch.nn.functional.pad(ids, (0, pads), value=self.settings.pad_token_id), mask

    def text_batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Two texts padded to the longer: ids, mask and image embeddings."""
        texts = self.texts()[:2]
        longest = max(ids.shape[1] for _, ids in texts)
        padded = [self.padded_right(ids, longest) for _, ids in texts]
        images = torch.cat([self.image_embeds(scene) for scene, _ in texts])
        return torch.cat([p[0] for p in padded]), torch.cat([p[1] for p in padded]), images

    def encoded_text(
        self, ids: torch.Tensor, mask: torch.Tensor | None, image: torch.Tensor | None
    ) -> torch.Tensor:
        """Hidden states of the checkpoint's own text encoder, attending the image if given."""
        image_mask = None if image is None else torch.ones(image.shape[:2]).long()
        result = self.model.text_encoder(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=image,
            encoder_attention_mask=image_mask,
        )
        hidden: torch.Tensor = result.last_hidden_state
        return hidden

    @cached_property
    def encoder_states(self) -> list[torch.Tensor]:
        """What the decoder attends: two images' tokens (caption) or questions' states (vqa)."""
        images = [self.image_embeds(index) for index in range(self.scene_count)]
        if self.settings.task != "vqa":
            return images
        texts = self.texts()[: self.scene_count]
        return [self.encoded_text(ids, None, images[index]) for index, ids in texts]

    def encoder_batch(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same as one batch, with its mask where lengths differ."""
        if self.settings.task != "vqa":
            return torch.cat(self.encoder_states), None
        ids, mask, images = self.text_batch()
        return self.encoded_text(ids, mask, images), mask

    def decoder_run(self, states: torch.Tensor) -> DecoderRun:
        """A fresh decoding of the checkpoint's own text decoder; every state is attended."""
        return DecoderRun(self.model.text_decoder, states)

    def cross(self, states: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cross-attention keys and values that HuggingFace caches for encoder states."""
        run = self.decoder_run(states)
        run.feed(torch.full((states.shape[0], 1), self.settings.start_token_id))
        return run.cross()

    def prompt(self) -> torch.Tensor:
        """``[1, tokens]`` that decoding starts with."""
        start = torch.tensor([[self.settings.start_token_id]])
        if self.settings.task == "vqa":
            return start
        return torch.cat([start, self.token_ids(CAPTION_PROMPT)[:, 1:-1]], dim=1)

    def decoder_tokens(self, index: int) -> torch.Tensor:
        """``[1, maximum_positions]``: start token, then a scene's texts over and over."""
        scene = self._scenes[index % self.scene_count]
        if self.settings.task == "vqa":
            texts = [item.answer for item in questions(scene)]
        else:
            texts = [f"{CAPTION_PROMPT} {caption(scene)}"]
        words = torch.cat([self.token_ids(text)[:, 1:-1] for text in texts], dim=1)
        wanted = self.settings.maximum_positions - 1
        words = words.repeat(1, -(-wanted // words.shape[1]))[:, :wanted]
        return torch.cat([torch.tensor([[self.settings.start_token_id]]), words], dim=1)
