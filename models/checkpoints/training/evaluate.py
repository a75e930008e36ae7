"""Measuring a saved checkpoint on held-out scenes through HuggingFace itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizerFast, BlipImageProcessorPil, BlipProcessor

from models.checkpoints.training.architecture import MODEL_CLASSES, Task
from pipeline.scenes import CAPTION_PROMPT, Scene, caption, draw, matching_pairs, questions, scenes

_CHUNK = 50


def evaluate_checkpoint(folder: Path, task: Task, count: int, start: int = 0) -> dict[str, Any]:
    """Measure one checkpoint on ``count`` held-out scenes; returns plain, serialisable figures.

    Images go through the Pillow image processor; texts of equal length are batched together, so
    that nothing is ever padded.
    """
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    processor = BlipProcessor(BlipImageProcessorPil.from_pretrained(folder), tokenizer)
    model = MODEL_CLASSES[task].from_pretrained(folder).eval()
    tally = _Tally()
    with torch.inference_mode():
        for chunk in _chunks(count, start):
            images = [draw(scene) for scene in chunk]
            pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
            {"caption": _captions, "vqa": _answers, "itm": _matches}[task](
                model, processor, chunk, pixels, tally
            )
    return {
        "task": task,
        "split": "heldout",
        "scenes": count,
        "first_scene": start,
        **tally.figures(),
    }


class _Tally:
    """Counts right answers, by metric and by kind within the metric."""

    def __init__(self) -> None:
        self._right: dict[str, int] = defaultdict(int)
        self._asked: dict[str, int] = defaultdict(int)

    def add(self, metric: str, kind: str, right: bool) -> None:
        """Record one answer under a metric and under ``metric/kind``."""
        for name in (metric, f"{metric}/{kind}"):
            self._right[name] += int(right)
            self._asked[name] += 1

    def figures(self) -> dict[str, Any]:
        """Return accuracies and counts by name."""
        names = sorted(self._asked)
        accuracy = {name: round(self._right[name] / self._asked[name], 5) for name in names}
        return {"accuracy": accuracy, "asked": {name: self._asked[name] for name in names}}


def _chunks(count: int, start: int) -> Iterator[list[Scene]]:
    for first in range(start, start + count, _CHUNK):
        yield list(scenes(min(_CHUNK, start + count - first), "heldout", first))


def _captions(
    model: Any, processor: Any, chunk: list[Scene], pixels: torch.Tensor, tally: _Tally
) -> None:
    """Compare greedy captions, without and with the prompt."""
    ids = processor.tokenizer([CAPTION_PROMPT] * len(chunk), return_tensors="pt")["input_ids"]
    free = model.generate(pixel_values=pixels, do_sample=False, num_beams=1)
    prompted = model.generate(pixel_values=pixels, input_ids=ids, do_sample=False, num_beams=1)
    for metric, tokens, prefix in (
        ("caption_exact", free, ""),
        ("prompted_caption_exact", prompted, CAPTION_PROMPT + " "),
    ):
        said = processor.batch_decode(tokens, skip_special_tokens=True)
        for scene, text in zip(chunk, said, strict=True):
            tally.add(metric, scene.description.kind, text == prefix + caption(scene))


def _answers(
    model: Any, processor: Any, chunk: list[Scene], pixels: torch.Tensor, tally: _Tally
) -> None:
    """Compare greedy answers; questions of one length form one batch."""
    by_length: dict[int, list[tuple[int, list[int], str, str]]] = defaultdict(list)
    for row, scene in enumerate(chunk):
        for item in questions(scene):
            ids = processor.tokenizer(item.question)["input_ids"]
            by_length[len(ids)].append((row, ids, item.answer, item.kind))
    for batch in by_length.values():
        rows = [row for row, *_ in batch]
        ids = torch.tensor([ids for _, ids, *_ in batch])
        tokens = model.generate(
            input_ids=ids,
            pixel_values=pixels[rows],
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
        )
        said = processor.batch_decode(tokens, skip_special_tokens=True)
        for (_, _, answer, kind), text in zip(batch, said, strict=True):
            tally.add("answer_exact", kind, text == answer)


def _matches(
    model: Any, processor: Any, chunk: list[Scene], pixels: torch.Tensor, tally: _Tally
) -> None:
    """Judge every text by the matching head; rank right against wrong by the contrast."""
    by_length: dict[int, list[tuple[int, list[int], bool, str]]] = defaultdict(list)
    for row, scene in enumerate(chunk):
        for pair in matching_pairs(scene):
            ids = processor.tokenizer(pair.text)["input_ids"]
            by_length[len(ids)].append((row, ids, pair.match, pair.kind))
    cosines: dict[int, dict[str, float]] = defaultdict(dict)
    for batch in by_length.values():
        rows = [row for row, *_ in batch]
        ids = torch.tensor([ids for _, ids, *_ in batch])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs["pixel_values"] = pixels[rows]
        verdicts = model(**inputs).itm_score.argmax(dim=-1)
        scores = model(**inputs, use_itm_head=False).itm_score.diagonal()
        for (row, _, match, kind), verdict, score in zip(batch, verdicts, scores, strict=True):
            right = bool(verdict) == match
            tally.add("matching", kind, right)
            tally.add("matching_by_truth", "match" if match else "mismatch", right)
            cosines[row][kind] = float(score)
    for scores_by_kind in cosines.values():
        for kind, score in scores_by_kind.items():
            if kind != "right":
                tally.add("contrast_ranking", kind, scores_by_kind["right"] > score)
