"""The joint training loss: captions, answers, matching and contrast on one set of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.checkpoints.training.architecture import Task
from models.checkpoints.training.data import Batch

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_SPREAD = (0.26862954, 0.26130258, 0.27577711)


def pixel_values(images: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    """Normalise uint8 ``[B, I, I, 3]`` to float32 ``[B, 3, I, I]`` as the processor does."""
    values = torch.from_numpy(images).to(torch.float32) / 255.0
    values = (values - torch.tensor(_CLIP_MEAN)) / torch.tensor(_CLIP_SPREAD)
    return values.permute(0, 3, 1, 2).contiguous()


def joint_losses(
    models: dict[Task, Any], scale: Tensor, batch: Batch, tasks: tuple[Task, ...]
) -> dict[str, Tensor]:
    """Return the mean losses by name (scalars); ``scale`` is the log of the contrast's scale."""
    image_embeds = models[tasks[0]].vision_model(pixel_values=pixel_values(batch.pixels))[0]
    losses: dict[str, Tensor] = {}
    if "caption" in tasks:
        losses["caption"] = _caption_loss(models["caption"], image_embeds, batch)
    if "vqa" in tasks:
        losses["vqa"] = _answer_loss(models["vqa"], image_embeds, batch)
    if "itm" in tasks:
        losses["itm"], losses["itc"] = _matching_losses(models["itm"], scale, image_embeds, batch)
    return losses


def _caption_loss(model: Any, image_embeds: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of the caption, the prompt's own tokens excepted."""
    output = model.text_decoder(
        input_ids=torch.from_numpy(batch.caption_ids), encoder_hidden_states=image_embeds
    )
    return _token_loss(output.logits, torch.from_numpy(batch.caption_labels))


def _answer_loss(model: Any, image_embeds: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of the answers; the decoder attends to the real question tokens only."""
    ids = torch.from_numpy(batch.question_ids)
    questions = encode_texts(model.text_encoder, ids, image_embeds)
    answers = torch.from_numpy(batch.answer_ids).flatten(0, 1)
    mask = (ids != 0).flatten(0, 1)
    logits = decode_answers(model.text_decoder, answers, questions.flatten(0, 1), mask)
    return _token_loss(logits, answers.masked_fill(answers == 0, -100))


def _matching_losses(
    model: Any, scale: Tensor, image_embeds: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Matching cross-entropy on right and wrong texts, and the in-batch contrastive loss."""
    ids = torch.from_numpy(batch.text_ids)
    labels = torch.from_numpy(batch.text_labels)
    states = encode_texts(model.text_encoder, ids, image_embeds)
    # One right text against several wrong ones: weigh both sides alike.
    weights = torch.tensor([1.0, float(labels.shape[1] - 1)])
    logits = model.itm_head(states[:, :, 0]).flatten(0, 1).float()
    matching = functional.cross_entropy(logits, labels.flatten(), weight=weights)

    # One wrong text of every image joins the contrast, as one more candidate.
    alone = ids[:, :2].transpose(0, 1).flatten(0, 1)[:, None]
    states = encode_texts(model.text_encoder, alone, None)
    texts = functional.normalize(model.text_proj(states[:, 0, 0]).float(), dim=-1)
    images = functional.normalize(model.vision_proj(image_embeds[:, 0]).float(), dim=-1)
    similarity = scale.exp() * images @ texts.t()  # [B, 2B]: right texts, then wrong ones
    count = len(images)
    keys = ids[:, 0]
    same = (keys[:, None, :] == keys[None, :, :]).all(-1) & ~torch.eye(count, dtype=torch.bool)
    right = similarity[:, :count].masked_fill(same, -1e4)
    target = torch.arange(count)
    contrast = functional.cross_entropy(
        torch.cat([right, similarity[:, count:]], dim=1), target
    ) + functional.cross_entropy(right.t(), target)
    return matching, contrast / 2


def encode_texts(encoder: Any, ids: Tensor, image_embeds: Tensor | None) -> Tensor:
    """Encode K texts per image, ``[B, K, S]`` ids, to states ``[B, K, S, C]``.

    The same arithmetic as the encoder's own forward pass, but the image's keys and values are
    computed once for all K texts. Without ``image_embeds`` the texts are encoded alone.
    """
    count, texts, length = ids.shape
    flat = ids.flatten(0, 1)
    hidden: Tensor = encoder.embeddings(input_ids=flat)
    bias = torch.zeros(flat.shape).masked_fill(flat == 0, -1e4)[:, None, None, :]
    for layer in encoder.encoder.layer:
        hidden, _ = layer.attention(hidden, attention_mask=bias)
        if image_embeds is not None:
            rows = hidden.view(count, texts * length, -1)
            rows, _ = layer.crossattention(rows, encoder_hidden_states=image_embeds)
            hidden = rows.view(count * texts, length, -1)
        hidden = layer.feed_forward_chunk(hidden)
    return hidden.view(count, texts, length, -1)


def decode_answers(decoder: Any, ids: Tensor, questions: Tensor, mask: Tensor) -> Tensor:
    """Return logits ``[N, S, V]`` of answers ``[N, S]``, given question states ``[N, E, C]``.

    The same arithmetic as the decoder's own forward pass, except that ``mask`` (bool ``[N, E]``)
    is obeyed: transformers 5 drops the mask of BLIP's cross-attention, so that the decoder would
    attend to padded question positions in training, which do not exist when it answers.
    """
    length = ids.shape[1]
    causal = torch.full((length, length), -1e4).triu(1)[None, None]
    hidden: Tensor = decoder.bert.embeddings(input_ids=ids)
    bias = torch.zeros(mask.shape).masked_fill(~mask, -1e4)[:, None, None, :]
    for layer in decoder.bert.encoder.layer:
        hidden, _ = layer.attention(hidden, attention_mask=causal)
        seen, _ = layer.crossattention.self(
            hidden, encoder_hidden_states=questions, encoder_attention_mask=bias
        )
        hidden = layer.feed_forward_chunk(layer.crossattention.output(seen, hidden))
    logits: Tensor = decoder.cls(hidden)
    return logits


def _token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Next-token cross-entropy; ``labels`` are aligned with the inputs, -100 is ignored."""
    predictions = logits[:, :-1].float().flatten(0, 1)
    return functional.cross_entropy(predictions, labels[:, 1:].flatten())
