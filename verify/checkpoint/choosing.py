"""The checkpoint chooses among given answers, as BLIP's own ``rank`` evaluation does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL.Image import Image

from verify.checkpoint.checkpoint import Checkpoint

#: Of the loss in BLIP's own code; HuggingFace's text models have another default.
LABEL_SMOOTHING = 0.1


def choose(
    checkpoint: Checkpoint,
    images: Sequence[Image],
    questions: Sequence[str],
    answers: Sequence[str],
    candidates: int,
) -> Iterator[tuple[int, ...]]:
    """The tokens of each question's best answer, its start and end included.

    Of the answers those count whose first token is most likely; the least loss is the best.
    """
    import torch

    model = checkpoint.model
    start, end = int(model.decoder_start_token_id), checkpoint.end_token
    rows = [[start, *checkpoint.token_ids(answer)[1:-1], end] for answer in answers]
    longest = max(map(len, rows))
    padded = torch.tensor([[*row, *[-100] * (longest - len(row))] for row in rows])
    loss = torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=LABEL_SMOOTHING)
    with torch.inference_mode():
        for image, question in zip(images, questions, strict=True):
            asked = torch.tensor([checkpoint.token_ids(question, encoded=True)])
            states = model.text_encoder(
                input_ids=asked,
                attention_mask=torch.ones_like(asked),
                encoder_hidden_states=model.vision_model(checkpoint.pixel_values([image]))[0],
            ).last_hidden_state
            first = model.text_decoder(padded[:1, :1], encoder_hidden_states=states).logits[0, 0]
            order = first[padded[:, 1]].argsort(descending=True, stable=True)[:candidates]
            labels = padded[order]
            logits = model.text_decoder(
                labels.clamp(min=0),
                attention_mask=(labels >= 0).long(),
                encoder_hidden_states=states.expand(len(order), -1, -1),
            ).logits
            sums = loss(logits[:, :-1].transpose(1, 2), labels[:, 1:]).sum(dim=1)
            yield tuple(rows[int(order[int(sums.argmin())])])
