"""The sample of a bundle: a scene of the verification, with the answer that passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bundle.verdict import Verdict
from configs.schema import PipelineConfig
from runtime.bundles.format import Sample
from verify.answers.cases import generation_cases, new_tokens, picture
from verify.results import Check

_FOLDER = "sample"


def write_sample(folder: Path, verdict: Verdict, pipeline: PipelineConfig) -> Sample:
    """Draws the picture into the bundle; what it should give is read off the verdict."""
    manifest, task = verdict.task.manifest, verdict.task.task
    first = generation_cases(task, 1, pipeline.verify.seed)[0]
    example = _example(verdict) or {"scene": first.scene, "text": first.text}
    (folder / _FOLDER).mkdir()
    name = f"{_FOLDER}/scene_{example['scene']}.png"
    picture(example["scene"]).save(folder / name)
    shapes = manifest.shapes
    limit = new_tokens(
        task, shapes.past_tokens, shapes.text_tokens, manifest.text.maximum_positions
    )
    found = example.get("found")
    return Sample(
        image=name,
        text=example["text"],
        new_tokens=limit if task != "itm" else 0,
        expected=found if task != "itm" else None,
        probability=found if task == "itm" else None,
        tolerance=example.get("tolerance"),
    )


def _example(verdict: Verdict) -> dict[str, Any] | None:
    """The first case to which the artifact gave the checkpoint's answer, in every mode."""
    if not verdict.passed:
        return None
    of_target = [c for c in verdict.checks if c.subject.gap == "tokens" and _is_mine(c, verdict)]
    shared = [
        [e for e in check.metrics["examples"] if e["same"] and e["found"] is not None]
        for check in of_target
    ]
    in_all = [
        example
        for example in shared[0]
        if all(any(_case(e) == _case(example) for e in other) for other in shared[1:])
    ]
    # A caption without a prompt is what users ask for first.
    in_all.sort(key=lambda example: verdict.task.task == "caption" and bool(example["text"]))
    if not in_all:
        return None
    bounds = [check.tolerance.get("max_probability_error", 0.0) for check in of_target]
    return {**in_all[0], "tolerance": max(bounds) if verdict.task.task == "itm" else None}


def _is_mine(check: Check, verdict: Verdict) -> bool:
    return check.subject.target == verdict.target.name


def _case(example: dict[str, Any]) -> tuple[int, str]:
    return example["scene"], example["text"]
