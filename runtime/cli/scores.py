"""``blip-edge caption --score``: how likely are given captions of each image?"""

from __future__ import annotations

from typing import Any, List, Optional, Sequence

from ..decoding.batching import StopSignal, Timings
from .commands import Found, Loaded, Work, line_of


def scores(prompts: Sequence[Optional[str]], captions: Sequence[str]) -> Work:
    """Work that sorts the captions of each image, and of each of its prompts, by confidence."""

    def work(
        task: Any, group: Sequence[Loaded], timings: Timings, stop: Optional[StopSignal]
    ) -> List[List[Found]]:
        found: List[List[Found]] = []
        for item, image in group:
            mine: List[Found] = []
            for prompt in (*item.texts, *prompts):
                results = task.score(image, list(captions), prompt, timings=timings, stop=stop)
                best = sorted(results, key=lambda one: -one.confidence)
                mine += [
                    line_of(item, prompt, task, one, place if len(best) > 1 else 0)
                    for place, one in enumerate(best, start=1)
                ]
            found.append(mine)
        return found

    return work
