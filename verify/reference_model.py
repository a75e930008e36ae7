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
from typing import Any

from configs.build import tool_versions, write_atomically
from configs.errors import InputError
from configs.layout import checkpoint_folder
from configs.manifest import TaskManifest, file_sha256, key_of
from configs.scenes.scene import SCENES_VERSION
from configs.schema import TaskConfig
from verify.cases import Case

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


def reference_key(manifest: TaskManifest, cases: Sequence[Case], new_tokens: int) -> dict[str, Any]:
    """Everything that decides the answers."""
    return {
        "weights_sha256": manifest.checkpoint.weights_sha256,
        "processor_files": {name: record.sha256 for name, record in sorted(manifest.files.items())},
        "question_start": manifest.text.question_start,
        "scenes_version": SCENES_VERSION,
        "tools": tool_versions("transformers", "torch", "pillow"),
        "module": file_sha256(Path(__file__)),
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
    answers = _Reference(config, manifest).answers(cases, new_tokens)
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


class _Reference:
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

    def answers(self, cases: Sequence[Case], new_tokens: int) -> list[Answer]:
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

    def _batches(self, cases: Sequence[Case]) -> Iterator[list[int]]:
        by_length: dict[int, list[int]] = {}
        for index, case in enumerate(cases):
            by_length.setdefault(len(self._ids(case)), []).append(index)
        for indices in by_length.values():
            for start in range(0, len(indices), BATCH):
                yield indices[start : start + BATCH]

    def _ids(self, case: Case, *, plain: bool = False) -> list[int]:
        ids: list[int] = self._tokenizer(case.text)["input_ids"]
        if not plain and case.task != "caption" and self._manifest.text.question_start == "enc":
            enc = self._manifest.text.enc_token_id
            ids = [enc if enc is not None else ids[0], *ids[1:]]
        return ids

    def _batch(self, cases: Sequence[Case], new_tokens: int) -> list[Answer]:
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
