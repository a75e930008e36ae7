"""What the checkpoint itself answers to whole questions, kept on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.atomic import write_atomically
from pipeline.build import tool_versions
from pipeline.json_file import stored
from pipeline.manifest import TaskManifest, from_json, key_of
from pipeline.sources import source_digest
from verify.answers.cases import Case
from verify.checkpoint.checkpoint import Checkpoint

BATCH = 50
#: Cases whose best two tokens come this close are run again alone: batched arithmetic may round
#: them apart.
CLOSE_LOGITS = 1e-2


@dataclass(frozen=True)
class Answer:
    """The checkpoint's answer to one case.

    ``tokens`` are the ids of the whole sequence, the prompt and the end token included (caption,
    vqa); the first ``prompt`` of them are the prompt. ``margin`` is the least distance between the
    best two logits of any step: a small one explains a divergence. ``probability`` and
    ``similarity`` are the match probability and the contrastive cosine (itm).
    """

    tokens: tuple[int, ...] = ()
    prompt: int = 0
    margin: float | None = None
    probability: float | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class _Stored:
    key: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class MatchFeatures:
    """What matching is decided by, for one image and its texts."""

    #: ``[features]`` of unit length
    image: NDArray[np.float32]
    #: ``[texts, features]`` of unit length
    texts: NDArray[np.float32]
    #: ``[texts, 2]``: does not fit, fits
    logits: NDArray[np.float32]


def reference_answers(
    store: Path,
    manifest: TaskManifest,
    question_start: str,
    cases: Sequence[Case],
    new_tokens: int,
    load: Callable[[], Checkpoint],
) -> list[Answer]:
    """The checkpoint's answers to ``cases``, from ``store`` when nothing that decides them changed.

    Raises:
        InputError: the checkpoint cannot be loaded.
    """
    key = key_of(
        {
            "weights_sha256": manifest.checkpoint.weights_sha256,
            "processor_files": {name: file.sha256 for name, file in sorted(manifest.files.items())},
            "question_start": question_start,
            "tools": tool_versions("transformers", "torch", "pillow"),
            "sources": source_digest("verify.checkpoint.answers"),
            "new_tokens": new_tokens,
            "cases": [[case.scene, case.text] for case in cases],
        }
    )
    stored = _read(store, key)
    if stored is not None and len(stored) == len(cases):
        return stored
    images = [case.image for case in cases]
    answers = answer(load(), images, [case.text for case in cases], new_tokens)
    text = json.dumps(
        {
            "key": key,
            "task": manifest.task,
            "answers": [
                {"scene": case.scene, "text": case.text, **answer.__dict__}
                for case, answer in zip(cases, answers, strict=True)
            ],
        },
        indent=1,
    )
    write_atomically(store, text + "\n")
    return answers


def _read(store: Path, key: str) -> list[Answer] | None:
    kept = stored(store, lambda data: from_json(_Stored, data))
    return list(kept.answers) if kept is not None and kept.key == key else None


def answer(
    checkpoint: Checkpoint,
    images: Sequence[Callable[[], Image]],
    texts: Sequence[str],
    new_tokens: int,
) -> list[Answer]:
    """Answers to each text about its image, in order; only equal lengths share a batch."""
    found: dict[int, Answer] = {}

    def ask(chosen: list[int]) -> None:
        shown, asked = [images[i]() for i in chosen], [texts[i] for i in chosen]
        if checkpoint.task == "itm":
            every = match_features(checkpoint, shown, [[text] for text in asked])
            found.update(zip(chosen, map(_score, every), strict=True))
        else:
            found.update(zip(chosen, _generated(checkpoint, shown, asked, new_tokens), strict=True))

    for chosen in _by_length([checkpoint.token_ids(text) for text in texts]):
        ask(chosen)
    for index, one in list(found.items()):
        if one.margin is not None and one.margin < CLOSE_LOGITS:
            ask([index])
    return [found[index] for index in range(len(texts))]


def _generated(
    checkpoint: Checkpoint, images: Sequence[Image], texts: Sequence[str], new_tokens: int
) -> Iterator[Answer]:
    sequences, steps = checkpoint.generate(images, texts, max_new_tokens=new_tokens, num_beams=1)
    prompt = checkpoint.prompt_tokens(texts[0])
    for row, tokens in enumerate(sequences):
        best = [np.partition(step[row], -2)[-2:] for step in steps[: len(tokens) - prompt]]
        yield Answer(tokens, prompt, min(float(most - second) for second, most in best))


def _score(found: MatchFeatures) -> Answer:
    other, fits = found.logits[0].astype(np.float64)
    probability = 1.0 / (1.0 + np.exp(other - fits))
    return Answer(probability=float(probability), similarity=float(found.image @ found.texts[0]))


def match_features(
    checkpoint: Checkpoint, images: Sequence[Image], texts: Sequence[Sequence[str]]
) -> list[MatchFeatures]:
    """Features and matching logits of each image with its own texts (itm).

    The steps of ``BlipForImageTextRetrieval.forward``, on the model's own modules, so that an
    image is encoded once for all its texts; nothing is padded.
    """
    import torch

    model = checkpoint.model
    normalize = torch.nn.functional.normalize
    flat = [text for own in texts for text in own]
    owner = [index for index, own in enumerate(texts) for _ in own]
    features = np.zeros((len(flat), model.config.image_text_hidden_size), dtype=np.float32)
    logits = np.zeros((len(flat), 2), dtype=np.float32)

    def first_states(ids: list[list[int]], image: Any) -> Any:
        rows = torch.tensor(ids)
        attended = None if image is None else torch.ones(image.shape[:-1], dtype=torch.long)
        states = model.text_encoder(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            encoder_hidden_states=image,
            encoder_attention_mask=attended,
        )
        return states.last_hidden_state[:, 0, :]

    with torch.inference_mode():
        pixels = checkpoint.pixel_values(images)
        embeds = torch.cat(
            [model.vision_model(pixel_values=part)[0] for part in pixels.split(BATCH)]
        )
        of_images = normalize(model.vision_proj(embeds[:, 0, :]), dim=-1).numpy()
        plain = [checkpoint.token_ids(text) for text in flat]
        encoded = [checkpoint.token_ids(text, encoded=True) for text in flat]
        for chosen in _by_length(plain):
            alone = first_states([plain[i] for i in chosen], None)
            features[chosen] = normalize(model.text_proj(alone), dim=-1).numpy()
            mine = embeds[[owner[i] for i in chosen]]
            states = first_states([encoded[i] for i in chosen], mine)
            logits[chosen] = model.itm_head(states).numpy()
    return features_by_image(of_images, (features, texts), (logits, texts))


def features_by_image(
    of_images: NDArray[Any],
    of_texts: tuple[NDArray[Any], Sequence[Sequence[str]]],
    logits: tuple[NDArray[Any], Sequence[Sequence[str]]],
) -> list[MatchFeatures]:
    """Rows of all images' texts, and of all their pairs, image by image."""
    parts = [
        np.split(rows, np.cumsum([len(own) for own in owned])[:-1])
        for rows, owned in (of_texts, logits)
    ]
    return [MatchFeatures(*one) for one in zip(of_images, *parts, strict=True)]


def _by_length(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of rows of equal length, at most a batch of them at a time: nothing is padded."""
    found: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        found.setdefault(len(row), []).append(index)
    for indices in found.values():
        for start in range(0, len(indices), BATCH):
            yield indices[start : start + BATCH]
