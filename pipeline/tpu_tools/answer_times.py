"""Whole answers from the nets' estimates: how often each net runs for one caption or question."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from configs.schema import Task

#: component, net
NetName = tuple[str, str]


@dataclass(frozen=True)
class Part:
    """One part of a task that is timed by itself, and how often it calls each net."""

    name: str
    calls: Mapping[NetName, int]


def parts(
    task: Task, nets: set[NetName], tokens: int, per_pass: float | None = None
) -> tuple[Part, ...]:
    """The parts of a task.

    ``per_pass`` are the tokens that a pass yields which checks drafted ones, as measured; None
    where the first pass's net cannot. All passes then run that net.

    A caption or answer of ``tokens`` tokens, its end included, takes one decoder call per token:
    each call yields one, and the last one need not be fed. A match is the matching head's; the
    contrastive score is a part of its own, whose image part shares the vision encoder.
    """
    vision, cross = ("vision_encoder", "main"), ("cross_key_values", "main")
    text = ("text_encoder", "main")
    if task == "itm":
        contrastive = {("text_encoder_unimodal", "main"): 1, ("vision_projection", "main"): 1}
        return (Part("match", {vision: 1, text: 1}), Part("contrastive score", contrastive))
    first, step = ("text_decoder", "first_pass"), ("text_decoder", "step")
    decoding = {first: 1, step: tokens - 1} if first in nets else {step: tokens}
    decoding = {net: count for net, count in decoding.items() if count}
    if task == "caption":
        whole = Part("caption", {vision: 1, cross: 1, **decoding})
        if per_pass is None:
            return (whole,)
        checks = {vision: 1, cross: 1, first: math.ceil(tokens / per_pass)}
        return (whole, Part("caption, drafted", checks))
    return (Part("image", {vision: 1}), Part("question", {text: 1, cross: 1, **decoding}))


def total(part: Part, values: Mapping[NetName, float | None]) -> float | None:
    """Sum over the part's calls, or None where a net has no value."""
    found = [(values.get(net), count) for net, count in part.calls.items()]
    if any(value is None for value, _ in found):
        return None
    return sum(value * count for value, count in found if value is not None)
