"""The checkpoint in torch through HuggingFace's own ``generate``, eager."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch

from benchmarks.variants.base import NEW_TOKENS, Call, Variant, VariantOptions, Workload
from verify.checkpoint.checkpoint import load_model


class HuggingFaceVariant(Variant):
    """HuggingFace's model in float32, or with its weights converted to bfloat16."""

    def __init__(self, options: VariantOptions) -> None:
        torch.set_num_threads(options.threads)
        self._task, self._inputs = options.task, options.inputs
        self._dtype = torch.bfloat16 if options.variant == "torch_bf16" else torch.float32
        self._model = load_model(options.task, options.checkpoint, options.revision).to(self._dtype)
        self._calls: list[tuple[str, float]] = []
        for stage, part in (
            ("vision", "vision_model"),
            ("text_encoder", "text_encoder"),
            ("decoder", "text_decoder"),
        ):
            if module := getattr(self._model, part, None):
                module.forward = self._clocked(stage, module.forward)

    def run(self, workload: Workload) -> Call:
        """One ``generate`` (caption, vqa), or both matching scores of each pair (itm)."""
        rows = slice(0, workload.batch)
        pixels = torch.from_numpy(self._inputs.pixel_values[rows]).to(self._dtype)
        ids = torch.from_numpy(self._inputs.input_ids[rows].copy())
        self._calls = []
        tokens: list[list[int]] = []
        begin = time.perf_counter()
        with torch.inference_mode():
            if self._task == "itm":
                self._scores(pixels, ids)
            else:
                tokens = self._model.generate(
                    pixel_values=pixels,
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=NEW_TOKENS,
                    min_new_tokens=NEW_TOKENS,
                    num_beams=workload.beams,
                    do_sample=False,
                ).tolist()
        seconds = time.perf_counter() - begin
        decoder = [spent for stage, spent in self._calls if stage == "decoder"]
        stages: dict[str, float] = {"first_pass": decoder[0]} if decoder else {}
        for stage, spent in self._calls:
            if stage != "decoder":
                stages[stage] = stages.get(stage, 0.0) + spent
        steps = decoder[1:]
        return Call(seconds, stages, sum(steps) / len(steps) if steps else None, tokens)

    def _scores(self, pixels: Any, ids: Any) -> None:
        """What ``Matcher`` computes: the matching head and the cosine, one vision pass for both."""
        model, mask = self._model, torch.ones_like(ids)
        embeds = model.vision_model(pixel_values=pixels).last_hidden_state
        hidden = model.text_encoder(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=embeds,
            encoder_attention_mask=torch.ones(embeds.shape[:-1], dtype=torch.long),
        ).last_hidden_state
        model.itm_head(hidden[:, 0]).softmax(-1)
        alone = model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        normalize = torch.nn.functional.normalize
        image = normalize(model.vision_proj(embeds[:, 0]), dim=-1)
        text = normalize(model.text_proj(alone[:, 0]), dim=-1)
        (image * text).sum(-1)

    def _clocked(self, stage: str, forward: Any) -> Any:
        @functools.wraps(forward)
        def clocked(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            result = forward(*arguments, **named)
            self._calls.append((stage, time.perf_counter() - begin))
            return result

        return clocked
