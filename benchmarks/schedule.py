"""What is measured and in which order: workloads, blocks of rounds, rotation of the variants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: New tokens of every generation, forced: random weights would end early, each variant elsewhere.
NEW_TOKENS = 16
#: Tokens of every caption prompt, the start token included.
PROMPT_TOKENS = 4
#: Past lengths between which the growth of a token's cost is measured.
PAST_FROM, PAST_TO = 8, 64

LIMITS = "limits"
BASELINES = ("torch_f32", "torch_bf16", "torch_compile", "onnxruntime", "notebook")
MODES = ("exact", "fast", "int8", "int4")
VARIANTS = (*BASELINES, *MODES)


@dataclass(frozen=True)
class Workload:
    """One call of a variant."""

    name: str
    batch: int = 1
    beams: int = 1
    new_tokens: int = NEW_TOKENS

    def as_json(self) -> dict[str, Any]:
        """For the worker's protocol and the results."""
        return asdict(self)


GREEDY = Workload("greedy")
BEAMS = Workload("beams_3", beams=3)
BATCH_4 = Workload("batch_4", batch=4)
BATCH_16 = Workload("batch_16", batch=16)
LONG = Workload("long", new_tokens=PAST_TO - PROMPT_TOKENS + 2)
LIMIT_WORKLOADS = tuple(
    Workload(name) for name in ("gemm_f32", "gemm_bf16", "gemm_int8", "read_bandwidth")
)


@dataclass(frozen=True)
class Block:
    """Rounds over the same workloads of the same variants."""

    name: str
    #: what each variant does in a round, in this order
    workloads: tuple[tuple[str, tuple[Workload, ...]], ...]
    rounds: int
    #: rounds are cut to what fits into this time, but never below ``FEWEST_ROUNDS``
    budget_s: float

    @property
    def variants(self) -> tuple[str, ...]:
        """Variants in the block's own order."""
        return tuple(name for name, _ in self.workloads)


#: With fewer rounds a median says little.
FEWEST_ROUNDS = 3


def rotated(items: Sequence[str], turn: int) -> list[str]:
    """The items, begun at another one each turn: no variant always follows the same warm caches."""
    if not items:
        return []
    start = turn % len(items)
    return [*items[start:], *items[:start]]


def order(block: Block, rounds: int, first: int = 0) -> Iterator[tuple[int, str, Workload]]:
    """Round, variant and workload of every sample of a block, in the order they are taken."""
    work = dict(block.workloads)
    for turn in range(first, rounds):
        for variant in rotated(block.variants, turn):
            for workload in work[variant]:
                yield turn, variant, workload
