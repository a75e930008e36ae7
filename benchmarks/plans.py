"""Which blocks a run consists of."""

from __future__ import annotations

from benchmarks.schedule import (
    BATCH_4,
    BATCH_16,
    BEAMS,
    GREEDY,
    LIMIT_WORKLOADS,
    LIMITS,
    LONG,
    MODES,
    Block,
    Workload,
)
from configs.schema import Task

#: Baselines that a batch of 16 is measured on: the others take minutes and decide nothing.
LARGE_BATCH_BASELINES = ("torch_f32", "notebook")


def plan(
    task: Task, variants: tuple[str, ...], *, rounds: int | None, quick: bool, long_fits: bool
) -> list[Block]:
    """The blocks for these variants.

    Args:
        task: matching has neither beams nor steps.
        variants: what is to be measured, without the machine's limits.
        rounds: of the main block; the others get half as many. None: the default.
        quick: fewer rounds, and only our modes beyond the main block.
        long_fits: whether the checkpoint knows positions enough for the growth of a token's cost.
    """
    most = rounds or (5 if quick else 11)
    few = max(3, (most + 1) // 2) if rounds is None else max(1, (rounds + 1) // 2)
    modes = tuple(name for name in variants if name in MODES)
    # Another batch or beam count makes torch.compile compile for minutes.
    others = modes if quick else tuple(name for name in variants if name != "torch_compile")
    blocks = [
        Block(
            "answer",
            (*_each(variants, GREEDY), (LIMITS, LIMIT_WORKLOADS)),
            most,
            40.0 if quick else 110.0,
        )
    ]
    if task != "itm":
        blocks.append(Block("beams", _each(others, GREEDY, BEAMS), few, 20.0 if quick else 80.0))
    if not quick:
        blocks.append(Block("batch_4", _each(others, BATCH_4), few, 80.0))
    large = tuple(name for name in LARGE_BATCH_BASELINES if name in others)
    blocks.append(
        Block(
            "batch_16",
            (*_each(modes, GREEDY, BATCH_16), *_each(large, BATCH_16)),
            few,
            25.0 if quick else 130.0,
        )
    )
    if task == "caption" and long_fits:
        blocks.append(Block("long", _each(modes, LONG), few, 10.0 if quick else 20.0))
    return [block for block in blocks if block.workloads]


def _each(
    variants: tuple[str, ...], *workloads: Workload
) -> tuple[tuple[str, tuple[Workload, ...]], ...]:
    return tuple((name, workloads) for name in variants)
