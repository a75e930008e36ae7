"""What the checkpoint itself answers: HuggingFace models in torch, unpadded, as downloaded.

The only module of ``verify`` that needs torch and transformers; it imports them when answers are
not stored yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from configs.errors import InputError
from configs.layout import checkpoint_folder
from configs.schema import Task, TaskConfig
from pipeline.atomic import write_atomically
from pipeline.build import tool_versions
from pipeline.manifest import TaskManifest, key_of
from pipeline.sources import source_digest
from verify.answers.cases import Case

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


class Asked(Protocol):
    """An image and its text: all that an answer depends on."""

    @property
    def task(self) -> Task:
        """The task's name."""
        ...

    @property
    def text(self) -> str:
        """A caption prompt (may be empty), a question, or a text to match."""
        ...

    def image(self) -> Image:
        """The picture, RGB."""
        ...


@dataclass(frozen=True)
class MatchFeatures:
    """What matching is decided by, for one image and its texts."""

    #: ``[features]`` of unit length
    image: NDArray[np.float32]
    #: ``[texts, features]`` of unit length
    texts: NDArray[np.float32]
    #: ``[texts, 2]``: does not fit, fits
    logits: NDArray[np.float32]


def reference_key(manifest: TaskManifest, cases: Sequence[Case], new_tokens: int) -> dict[str, Any]:
    """Everything that decides the answers."""
    return {
        "weights_sha256": manifest.checkpoint.weights_sha256,
        "processor_files": {name: record.sha256 for name, record in sorted(manifest.files.items())},
        "question_start": manifest.text.question_start,
        "tools": tool_versions("transformers", "torch", "pillow"),
        "sources": source_digest("verify.checkpoint.reference_model"),
        "new_tokens": new_tokens,
        "cases": [[case.scene, case.text] for case in cases],
    }


def reference_answers(
    store: Path,
    config: TaskConfig,
    manifest: TaskManifest,
    cases: Sequence[Case],
    new_tokens: int,
) -> list[Answer]:
    """The checkpoint's answers to ``cases``, from ``store`` when nothing that decides them changed.

    Raises:
        InputError: the checkpoint cannot be loaded.
    """
    key = key_of(reference_key(manifest, cases, new_tokens))
    stored = _read(store, key)
    if stored is not None and len(stored) == len(cases):
        return stored
    answers = Reference(config, manifest).answers(cases, new_tokens)
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
    try:
        data = json.loads(store.read_text(encoding="utf-8"))
        if data["key"] != key:
            return None
        names = ("prompt", "margin", "probability", "similarity")
        return [
            Answer(tuple(row["tokens"]), *(row[name] for name in names)) for row in data["answers"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # computed again: the file is a cache


class Reference:
    """One checkpoint, loaded with HuggingFace's own classes."""

    def __init__(self, config: TaskConfig, manifest: TaskManifest) -> None:
        folder = checkpoint_folder(config.checkpoint)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        import torch
        from transformers import (
            AutoTokenizer,
            BlipForConditionalGeneration,
            BlipForImageTextRetrieval,
            BlipForQuestionAnswering,
        )
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
        from transformers.utils import logging

        logging.disable_progress_bar()
        self._torch = torch
        self._manifest = manifest
        model = {
            "caption": BlipForConditionalGeneration,
            "vqa": BlipForQuestionAnswering,
            "itm": BlipForImageTextRetrieval,
        }[manifest.task]
        source = str(folder) if folder is not None else config.checkpoint
        revision = manifest.checkpoint.revision if folder is None else None
        named = {"revision": revision} if revision else {}
        try:
            self._model = model.from_pretrained(source, dtype=torch.float32, **named).eval()
            self._tokenizer = AutoTokenizer.from_pretrained(source, **named)
            # Named explicitly: which processor `AutoProcessor` takes depends on what else is
            # installed.
            self._processor = BlipImageProcessorPil.from_pretrained(source, **named)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{config.checkpoint}: cannot load the checkpoint: {reason}") from None

    def answers(self, cases: Sequence[Asked], new_tokens: int) -> list[Answer]:
        """Answers in the order of ``cases``; only equal lengths share a batch: no padding."""
        found: dict[int, Answer] = {}
        with self._torch.inference_mode():
            for chosen in self._batches(cases):
                found.update(
                    zip(chosen, self._batch([cases[i] for i in chosen], new_tokens), strict=True)
                )
            for index, answer in found.items():
                if answer.margin is not None and answer.margin < CLOSE_LOGITS:
                    found[index] = self._batch([cases[index]], new_tokens)[0]
        return [found[index] for index in range(len(cases))]

    def match_features(
        self, images: Sequence[Image], texts: Sequence[Sequence[str]]
    ) -> list[MatchFeatures]:
        """Features and matching logits of each image with its own texts (itm).

        The steps of ``BlipForImageTextRetrieval.forward``, on the model's own modules, so that an
        image is encoded once for all its texts; nothing is padded.
        """
        torch, model = self._torch, self._model
        flat = [text for own in texts for text in own]
        owner = [index for index, own in enumerate(texts) for _ in own]
        features = np.zeros((len(flat), model.config.image_text_hidden_size), dtype=np.float32)
        logits = np.zeros((len(flat), 2), dtype=np.float32)
        with torch.inference_mode():
            pixels = self._processor(list(images), return_tensors="pt")["pixel_values"]
            embeds = torch.cat(
                [model.vision_model(pixel_values=part)[0] for part in pixels.split(BATCH)]
            )
            normalize = torch.nn.functional.normalize
            of_images = normalize(model.vision_proj(embeds[:, 0, :]), dim=-1).numpy()
            rows = [self._text_ids(text) for text in flat]
            plain = [self._text_ids(text, plain=True) for text in flat]
            for chosen in _by_length(rows):
                ids = torch.tensor([plain[i] for i in chosen])
                states = model.text_encoder(
                    input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True
                ).last_hidden_state
                features[chosen] = normalize(model.text_proj(states[:, 0, :]), dim=-1).numpy()
                ids = torch.tensor([rows[i] for i in chosen])
                mine = embeds[[owner[i] for i in chosen]]
                states = model.text_encoder(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    encoder_hidden_states=mine,
                    encoder_attention_mask=torch.ones(mine.shape[:-1], dtype=torch.long),
                    return_dict=True,
                ).last_hidden_state
                logits[chosen] = model.itm_head(states[:, 0, :]).numpy()
        found, start = [], 0
        for index, own in enumerate(texts):
            stop = start + len(own)
            found.append(MatchFeatures(of_images[index], features[start:stop], logits[start:stop]))
            start = stop
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens left out, as the checkpoint's tokenizer writes it."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def _batches(self, cases: Sequence[Asked]) -> Iterator[list[int]]:
        return _by_length([self._ids(case) for case in cases])

    def _ids(self, case: Asked, *, plain: bool = False) -> list[int]:
        return self._text_ids(case.text, plain=plain or case.task == "caption")

    def _text_ids(self, text: str, *, plain: bool = False) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        if not plain and self._manifest.text.question_start == "enc":
            enc = self._manifest.text.enc_token_id
            ids = [enc if enc is not None else ids[0], *ids[1:]]
        return ids

    def _batch(self, cases: Sequence[Asked], new_tokens: int) -> list[Answer]:
        torch = self._torch
        pixel_values = self._processor([case.image() for case in cases], return_tensors="pt")
        pixels = pixel_values["pixel_values"]
        ids = torch.tensor([self._ids(case) for case in cases])
        if self._manifest.task == "itm":
            return self._scores(pixels, ids, [self._ids(case, plain=True) for case in cases])
        prompt = 1 if self._manifest.task == "vqa" else ids.shape[1] - 1
        outputs = self._model.generate(
            pixel_values=pixels,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            output_logits=True,
            return_dict_in_generate=True,
        )
        # The checkpoint's own end token: the manifest's is among the things verified.
        end = self._model.config.text_config.sep_token_id
        answers = []
        for row, sequence in enumerate(outputs.sequences):
            tokens = [int(token) for token in sequence]
            if end in tokens[prompt:]:
                tokens = tokens[: tokens.index(end, prompt) + 1]
            margins = []
            for logits in outputs.logits[: len(tokens) - prompt]:
                best, second = logits[row].float().topk(2).values.tolist()
                margins.append(best - second)
            answers.append(Answer(tuple(tokens), prompt, min(margins)))
        return answers

    def _scores(self, pixels: Any, ids: Any, plain: list[list[int]]) -> list[Answer]:
        torch = self._torch
        mask = torch.ones_like(ids)
        logits = self._model(
            input_ids=ids, pixel_values=pixels, attention_mask=mask, use_itm_head=True
        )[0]
        probabilities = torch.softmax(logits.float(), dim=-1)[:, 1].tolist()
        # All pairs of the batch; a case's own image and text stand on the diagonal. The contrastive
        # features start with [CLS], whatever the matching head starts with.
        cosines = self._model(
            input_ids=torch.tensor(plain),
            pixel_values=pixels,
            attention_mask=mask,
            use_itm_head=False,
        )[0]
        similarities = torch.diagonal(cosines).tolist()
        return [
            Answer(probability=probability, similarity=similarity)
            for probability, similarity in zip(probabilities, similarities, strict=True)
        ]


def _by_length(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of rows of equal length, at most a batch of them at a time: nothing is padded."""
    found: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        found.setdefault(len(row), []).append(index)
    for indices in found.values():
        for start in range(0, len(indices), BATCH):
            yield indices[start : start + BATCH]
