"""``text_decoder``: new tokens over cached ones -> last logits and the new cache rows.

One graph for the first pass (many tokens, empty cache), for every later step (one token), and for
a step that checks drafted tokens: ``first_logit`` says from which new token on there are logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from export.component import (
    BATCH,
    ENCODER_TOKENS,
    PAST_TOKENS,
    TEXT_TOKENS,
    TOTAL_TOKENS,
    Case,
    Tensors,
    tensor,
)
from export.components.cross_key_values import key_value_tensors
from export.components.layers import MASKED, Projection
from export.components.text_layers import (
    CrossAttention,
    SelfAttention,
    TextEmbeddings,
    TextFeedForward,
)
from export.samples import Samples
from export.settings import ModelSettings
from pipeline.manifest import FIRST_LOGIT, TensorSpec

#: longer chunks only bring HuggingFace's cache to a length; checking them too costs seconds
_LONGEST_CHUNK = 64


class DecoderLayer(nn.Module):
    """One decoder layer over cached self-attention rows and ready cross-attention rows."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attention = SelfAttention(layer.attention)
        self.cross_attention = CrossAttention(layer.crossattention)
        self.feed_forward = TextFeedForward(layer)

    def forward(
        self,
        hidden: torch.Tensor,
        past: tuple[torch.Tensor, torch.Tensor],
        cross: tuple[torch.Tensor, torch.Tensor],
        self_mask: torch.Tensor,
        cross_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns ``[batch, tokens, hidden]`` and the new key and value rows."""
        new_key, new_value = self.attention.key_value(hidden)
        key = torch.cat([past[0], new_key], dim=1)
        value = torch.cat([past[1], new_value], dim=1)
        hidden = self.attention(hidden, key, value, self_mask)
        hidden = self.cross_attention(hidden, *cross, cross_mask)
        return self.feed_forward(hidden), new_key, new_value


class LanguageModelHead(nn.Module):
    """Vocabulary logits; the output weight is the token embedding where they are tied."""

    def __init__(self, predictions: Any) -> None:
        super().__init__()
        self.transform = Projection.of(predictions.transform.dense)
        self.activation = predictions.transform.transform_act_fn
        self.norm = predictions.transform.LayerNorm
        self.weight = predictions.decoder.weight
        self.bias = predictions.decoder.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, tokens, hidden]`` -> ``[batch x tokens, vocabulary]``."""
        # BM1684's compiler gets a LayerNorm of ``[batch, hidden]`` wrong in every row but one.
        hidden = self.norm(self.activation(self.transform(hidden))).flatten(0, 1)
        # Gemm reads the embedding table as it lies, so one copy serves lookup and logits.
        return nn.functional.linear(hidden, self.weight, self.bias)


class TextDecoder(nn.Module):
    """Decoder layers and the language model head, on the last position unless asked for more."""

    #: position of the first new token with logits, counted from the end
    first_logit: torch.Tensor

    def __init__(self, decoder: Any, *, masked_encoder: bool) -> None:
        super().__init__()
        self.register_buffer(FIRST_LOGIT, torch.tensor(-1))
        self.masked_encoder = masked_encoder
        self.embeddings = TextEmbeddings(decoder.bert.embeddings)
        self.layers = nn.ModuleList(DecoderLayer(layer) for layer in decoder.bert.encoder.layer)
        self.head = LanguageModelHead(decoder.cls.predictions)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        self_attention_mask: torch.Tensor,
        *rest: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Tensors in the contract's order; logits ``[batch, vocabulary]`` first."""
        cross_mask, rest = (rest[0], rest[1:]) if self.masked_encoder else (None, rest)
        pairs = list(zip(rest[0::2], rest[1::2], strict=True))
        past, cross = pairs[: len(self.layers)], pairs[len(self.layers) :]
        hidden = self.embeddings(input_ids, position_ids)
        rows: list[torch.Tensor] = []
        for layer, layer_past, layer_cross in zip(self.layers, past, cross, strict=True):
            hidden, key, value = layer(
                hidden, layer_past, layer_cross, self_attention_mask, cross_mask
            )
            rows += [key, value]
        return self.head(hidden[:, self.first_logit :]), *rows


def tensors(settings: ModelSettings) -> Tensors:
    """See docs/manifest.md; questions are padded, images are not, so only vqa has a cross mask."""
    cross_mask: tuple[TensorSpec, ...] = ()
    if settings.task == "vqa":
        cross_mask = (tensor("cross_attention_mask", BATCH, 1, TEXT_TOKENS, ENCODER_TOKENS),)
    return Tensors(
        inputs=(
            tensor("input_ids", BATCH, TEXT_TOKENS, dtype="int64"),
            tensor("position_ids", BATCH, TEXT_TOKENS, dtype="int64"),
            tensor("self_attention_mask", BATCH, 1, TEXT_TOKENS, TOTAL_TOKENS),
            *cross_mask,
            *key_value_tensors("past", PAST_TOKENS, settings),
            *key_value_tensors("cross", ENCODER_TOKENS, settings),
        ),
        outputs=(
            tensor("logits", BATCH, settings.vocabulary_size),
            *key_value_tensors("new", TEXT_TOKENS, settings),
        ),
        optional=(tensor(FIRST_LOGIT, dtype="int64"),),
    )


def wrapper(model: Any, settings: ModelSettings) -> nn.Module:
    """The text decoder."""
    return TextDecoder(model.text_decoder, masked_encoder=settings.task == "vqa")


def causal_mask(past: int, text: int) -> torch.Tensor:
    """``[1, 1, text, past + text]``: each new token sees the cache, itself and those before it."""
    blocked = torch.ones(text, past + text).triu(diagonal=past + 1)
    return (blocked * MASKED)[None, None]


def cases(samples: Samples) -> Iterator[Case]:
    """HuggingFace's own cached decoding at past lengths from 0 to the last position.

    Most important first: the reference file takes them in this order while there is room.
    """
    named = {case.name: case for case in _steps(samples, 0)}
    named |= {case.name: case for case in _first_passes(samples, 0)}
    first = ["step_2", "first_pass_padded", "step_31", "first_pass"]
    for name in [*(n for n in first if n in named), *(n for n in named if n not in first)]:
        yield named[name]
    yield from _padded_encoder(samples)
    yield from _batch(samples)


def _inputs(
    samples: Samples,
    ids: torch.Tensor,
    past: dict[str, torch.Tensor],
    cross: dict[str, torch.Tensor],
    encoder_mask: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The contract's inputs; without ``encoder_mask`` ``[batch, encoder_tokens]`` all is real."""
    batch, text = ids.shape
    length = past["past.0.key"].shape[1]
    positions = torch.arange(length, length + text)[None]
    inputs = {
        "input_ids": ids,
        "position_ids": positions.expand(batch, -1).contiguous(),
        "self_attention_mask": causal_mask(length, text).expand(batch, -1, -1, -1).contiguous(),
    }
    if samples.settings.task == "vqa":
        if encoder_mask is None:
            encoder_mask = torch.ones(batch, cross["cross.0.key"].shape[1])
        row = (1.0 - encoder_mask.float()) * MASKED
        inputs["cross_attention_mask"] = row[:, None, None].expand(-1, -1, text, -1).contiguous()
    return {**inputs, **past, **cross}


def _steps(samples: Samples, index: int) -> Iterator[Case]:
    """One token at a time at past 0, 1 and 2, then at growing lengths, chunks between them."""
    states = samples.encoder_states[index]
    tokens = samples.decoder_tokens(index)
    last = samples.settings.maximum_positions - 1
    run = samples.decoder_run(states)
    for target in [length for length in (0, 1, 2, 15, 31, last) if length <= last]:
        if run.length < target:
            chunk = tokens[:, run.length : target]
            name = f"chunk_{run.length}_to_{target}"
            past = run.past()
            outputs = run.feed(chunk)
            if chunk.shape[1] <= _LONGEST_CHUNK:
                inputs = _inputs(samples, chunk, past, run.cross())
                yield Case(name, inputs, outputs, stored=False)
        past = run.past()
        token = tokens[:, target : target + 1]
        outputs = run.feed(token)
        inputs = _inputs(samples, token, past, run.cross())
        yield Case(f"step_{target}", inputs, outputs, stored=target <= 31)


def _first_passes(samples: Samples, index: int) -> Iterator[Case]:
    """A whole prompt into an empty cache, as it is and padded on the left."""
    states = samples.encoder_states[index]
    prompt = samples.prompt()
    run = samples.decoder_run(states)
    empty = run.past()
    outputs = run.feed(prompt)
    inputs = _inputs(samples, prompt, empty, run.cross())
    yield Case("first_pass", inputs, outputs)

    pads, length = 2, prompt.shape[1]
    total = pads + length
    mask = causal_mask(0, total)
    mask[..., :pads] = MASKED
    positions = (torch.arange(total) - pads).clamp(min=0)[None]
    ids = torch.cat([torch.full((1, pads), samples.settings.pad_token_id), prompt], dim=1)
    padded = {
        **_inputs(samples, ids, empty, run.cross()),
        "position_ids": positions,
        "self_attention_mask": mask,
    }
    # Rows of padding tokens mean nothing, so HuggingFace's (attention spread over everything) and
    # ours (any finite values) need not agree: the reference records the logits only.
    attention_mask = torch.cat([torch.zeros(1, pads), torch.ones(1, length)], dim=1).long()
    logits = samples.decoder_run(states).feed(ids, attention_mask, positions)["logits"]
    # An answer's first pass is a single token: there is no padded one to replay on a chip.
    stored = samples.settings.task == "caption"
    yield Case("first_pass_padded", padded, {"logits": logits}, stored=stored)
    yield Case("first_pass_unpadded_model", padded, outputs, padding="left", stored=False)


def _padded_encoder(samples: Samples) -> Iterator[Case]:
    """A padded question with its real mask, against HuggingFace on the question without padding.

    HuggingFace on the padded question is no reference: its decoder attends the padding, whatever
    mask it is given.
    """
    if samples.settings.task != "vqa":
        return
    for index, (scene, question) in enumerate(samples.texts()):
        image = samples.image_embeds(scene)
        token = samples.decoder_tokens(index)[:, :1]
        ids, mask = samples.padded_right(question, question.shape[1] + 5)
        run = samples.decoder_run(samples.encoded_text(question, None, image))
        empty = run.past()
        outputs = run.feed(token)
        cross = samples.cross(samples.encoded_text(ids, mask, image))
        inputs = _inputs(samples, token, empty, cross, mask)
        yield Case(f"padded_question_{index}", inputs, outputs, stored=index < 2)


def _batch(samples: Samples) -> Iterator[Case]:
    """Several images or questions at once: a first pass and the step after it."""
    states, mask = samples.encoder_batch()
    cross = samples.cross(states)
    runs = [samples.decoder_run(single) for single in samples.encoder_states]
    tokens = [samples.decoder_tokens(index)[:, :3] for index in range(len(runs))]
    for name, part in (("batch_first_pass", slice(0, 2)), ("batch_step", slice(2, 3))):
        past = _joined([run.past() for run in runs])
        outputs = _joined([run.feed(ids[:, part]) for run, ids in zip(runs, tokens, strict=True)])
        ids = torch.cat([ids[:, part] for ids in tokens])
        yield Case(name, _inputs(samples, ids, past, cross, mask), outputs, stored=False)


def _joined(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
