"""The checkpoint's own intermediate tensors, by hooks on the unmodified HuggingFace modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from configs.schema import Component
from pipeline.scenes import CAPTION_PROMPT, make_scene, matching_pairs
from verify.answers.cases import SEED_STRIDE, picture, questions_by_length
from verify.checkpoint.checkpoint import MASKED, Checkpoint
from verify.layers.correspondence import SELF_MASK, Pair, Tensors, Traced
from verify.layers.graph import Array

#: Pad tokens behind a text, for the case that shows whether padding is attended.
_PADS = 5
#: Tokens of the longest call that is traced.
_MOST_TOKENS = 64


class Tracer:
    """Calls of a checkpoint's components with hooks on HuggingFace's modules."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        import torch

        self._torch = torch
        self.checkpoint = checkpoint
        self.model = checkpoint.model
        self.task = checkpoint.task
        self.text_config = checkpoint.text_config

    def traces(self, component: Component, pairs: Sequence[Pair], seed: int) -> list[Traced]:
        """A few calls of one component on held-out scenes, the second one padded or cached."""
        scene = seed * SEED_STRIDE
        makers = {
            "vision_encoder": self._vision,
            "vision_projection": self._vision_projection,
            "text_encoder": self._text,
            "text_encoder_unimodal": self._text,
            "cross_key_values": self._cross,
            "text_decoder": self._decoder,
        }
        names = {pair.module for pair in pairs}
        with self._torch.inference_mode():
            return list(makers[component](component, scene, names))

    def _pixel_values(self, scene: int) -> Any:
        return self.checkpoint.pixel_values([picture(scene)])

    def _image_embeds(self, scene: int) -> Any:
        return self.model.vision_model(pixel_values=self._pixel_values(scene)).last_hidden_state

    def _vision(self, _: Component, scene: int, names: set[str]) -> Iterator[Traced]:
        for index in (scene, scene + 1):
            pixels = self._pixel_values(index)
            with self._hooked(names) as seen:
                self.model.vision_model(pixel_values=pixels)
            yield Traced(f"scene {index}", {"pixel_values": pixels.numpy()}, seen, {})

    def _vision_projection(self, _: Component, scene: int, names: set[str]) -> Iterator[Traced]:
        for index in (scene, scene + 1):
            embeds = self._image_embeds(index)
            with self._hooked(names) as seen:
                projected = self.model.vision_proj(embeds[:, 0, :])
            features = self._torch.nn.functional.normalize(projected, dim=-1)
            feeds = {"image_embeds": embeds.numpy()}
            yield Traced(f"scene {index}", feeds, seen, {"image_features": features.numpy()})

    def _ids(self, text: str, component: Component) -> Any:
        ids = self.checkpoint.token_ids(text, encoded=component == "text_encoder")
        return self._torch.tensor([ids])

    def _texts(self, scene: int) -> list[str]:
        if self.task == "vqa":
            return questions_by_length(scene, 2)
        return sorted((pair.text for pair in matching_pairs(make_scene(scene))), key=len)[::3]

    def _text(self, component: Component, scene: int, names: set[str]) -> Iterator[Traced]:
        torch, embeds = self._torch, self._image_embeds(scene)
        crossed = component == "text_encoder"
        for number, text in enumerate(self._texts(scene)[:2]):
            ids = self._ids(text, component)
            mask = torch.ones_like(ids)
            if number:
                pads = min(_PADS, self.text_config.max_position_embeddings - ids.shape[1])
                ids = torch.nn.functional.pad(ids, (0, pads), value=self.text_config.pad_token_id)
                mask = torch.nn.functional.pad(mask, (0, pads))
                # A second, shorter row shows whether a row takes another one's inputs.
                ids = torch.cat([ids, ids.roll(1, dims=1)])
                shorter = mask.clone()
                shorter[:, mask.shape[1] // 2 :] = 0
                mask, embeds = torch.cat([mask, shorter]), _and_another(embeds)
            with self._hooked(names) as seen:
                states = self.model.text_encoder(
                    input_ids=ids,
                    attention_mask=mask,
                    encoder_hidden_states=embeds if crossed else None,
                    encoder_attention_mask=torch.ones(embeds.shape[:2]).long() if crossed else None,
                ).last_hidden_state
                outputs = self._text_outputs(component, states)
            feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
            if crossed:
                feeds["image_embeds"] = embeds.numpy()
            closed = (1.0 - mask.numpy().astype(np.float32)) * np.float32(MASKED)
            outputs[SELF_MASK] = closed[:, None, None, :]
            yield Traced(f"scene {scene} {text!r}" + ", padded" * number, feeds, seen, outputs)

    def _text_outputs(self, component: Component, states: Any) -> dict[str, Array]:
        if component == "text_encoder_unimodal":
            projected = self.model.text_proj(states[:, 0, :])
            features = self._torch.nn.functional.normalize(projected, dim=-1)
            return {"text_features": features.numpy()}
        if self.task == "itm":
            return {"itm_logits": self.model.itm_head(states[:, 0, :]).numpy()}
        return {"last_hidden_state": states.numpy()}

    def _states(self, scene: int) -> Any:
        """What the decoder attends: an image's tokens, or a question's states."""
        embeds = self._image_embeds(scene)
        if self.task == "caption":
            return embeds
        ids = self._ids(self._texts(scene)[-1], "text_encoder")
        ones = self._torch.ones(embeds.shape[:2]).long()
        return self.model.text_encoder(
            input_ids=ids,
            attention_mask=self._torch.ones_like(ids),
            encoder_hidden_states=embeds,
            encoder_attention_mask=ones,
        ).last_hidden_state

    def _cross(self, _: Component, scene: int, names: set[str]) -> Iterator[Traced]:
        for index in (scene, scene + 1):
            states = self._states(index)
            with self._hooked(names) as seen:
                cache = self._decode([self.text_config.bos_token_id], states, None)[1]
            outputs = _rows("cross", cache.cross_attention_cache)
            feeds = {"encoder_hidden_states": states.numpy()}
            yield Traced(f"scene {index}", feeds, seen, outputs)

    def _decoder(self, _: Component, scene: int, names: set[str]) -> Iterator[Traced]:
        states = _and_another(self._states(scene))
        prompt = [self.text_config.bos_token_id]
        if self.task == "caption":
            prompt += self.checkpoint.token_ids(CAPTION_PROMPT)[1:-1]
        cache: Any = None
        past, tokens = self._empty(len(states)), prompt
        for number in range(3):
            length = next(iter(past.values())).shape[1]
            with self._hooked(names) as seen:
                logits, cache = self._decode(tokens, states, cache)
            rows = _rows("new", cache.self_attention_cache, start=length)
            cross = _rows("cross", cache.cross_attention_cache)
            own = decoder_feeds(tokens, length)
            feeds = {name: np.repeat(array, len(states), axis=0) for name, array in own.items()}
            feeds |= {**past, **cross}
            if self.task == "vqa":
                encoder_tokens = cross["cross.0.key"].shape[1]
                shape = (len(states), 1, len(tokens), encoder_tokens)
                feeds["cross_attention_mask"] = np.zeros(shape, dtype=np.float32)
            name = ("first pass", "step 1", "long pass")[number]
            yield Traced(f"scene {scene} {name}", feeds, seen, rows)
            past = _rows("past", cache.self_attention_cache)
            tokens = [int(logits[0, -1].argmax())]
            if number == 1:
                # Then as many at once as there are positions: the last ones as well.
                room = self.text_config.max_position_embeddings - length - 1
                tokens = _many_tokens(tokens[0], room, self.text_config.vocab_size)

    def _decode(self, tokens: Sequence[int], states: Any, cache: Any) -> tuple[Any, Any]:
        result = self.model.text_decoder(
            input_ids=self._torch.tensor([list(tokens)] * len(states)),
            encoder_hidden_states=states,
            encoder_attention_mask=self._torch.ones(states.shape[:2]).long(),
            past_key_values=cache,
            use_cache=True,
        )
        return result.logits, result.past_key_values

    def _empty(self, rows: int) -> dict[str, Array]:
        text = self.text_config
        heads = text.num_attention_heads
        shape = (rows, 0, heads, text.hidden_size // heads)
        return {
            f"past.{layer}.{part}": np.zeros(shape, dtype=np.float32)
            for layer in range(text.num_hidden_layers)
            for part in ("key", "value")
        }

    @contextmanager
    def _hooked(self, names: set[str]) -> Iterator[Tensors]:
        seen: Tensors = {}
        handles, modules = [], self.checkpoint.modules

        def keep(name: str) -> Any:
            def hook(_module: Any, inputs: Any, output: Any) -> None:
                # The first call counts: the last normalisation also serves a pooled token that
                # nobody reads. Copies: HuggingFace adds to some tensors in place.
                if (name, "output") in seen:
                    return
                if inputs:
                    seen[name, "input"] = inputs[0].detach().numpy().copy()
                seen[name, "output"] = output.detach().numpy().copy()

            return hook

        for name in sorted(names & modules.keys()):
            handles.append(modules[name].register_forward_hook(keep(name)))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def _and_another(states: Any) -> Any:
    """States ``[1, tokens, hidden]`` and a second, different row."""
    import torch

    return torch.cat([states, states.roll(1, dims=1)])


def _many_tokens(first: int, count: int, vocabulary: int) -> list[int]:
    """Ids all over the vocabulary, at most as many as keep a full-size trace small."""
    step = max(1, vocabulary // 97)
    return [(first + step * index) % vocabulary for index in range(min(count, _MOST_TOKENS))]


def decoder_feeds(tokens: Sequence[int], past: int) -> dict[str, Array]:
    """Ids, positions and causal mask of tokens after ``past`` others, by their definition."""
    count = len(tokens)
    mask = np.zeros((1, 1, count, past + count), dtype=np.float32)
    for row in range(count):
        mask[0, 0, row, past + row + 1 :] = MASKED
    return {
        "input_ids": np.array([tokens], dtype=np.int64),
        "position_ids": np.arange(past, past + count, dtype=np.int64)[None],
        "self_attention_mask": mask,
    }


def _rows(prefix: str, cache: Any, start: int = 0) -> dict[str, Array]:
    found = {}
    for index, layer in enumerate(cache.layers):
        for part, value in (("key", layer.keys), ("value", layer.values)):
            rows = value[:, :, start:].transpose(1, 2).contiguous()
            found[f"{prefix}.{index}.{part}"] = rows.numpy().copy()
    return found
