"""Training in several processes of one thread each, which averages gradients once per step.

On a busy machine this is far faster than one process of several threads: threads wait for each
other after every operation, processes once per step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn


def run_processes(count: int, work: Callable[[int], None]) -> None:
    """Call ``work(rank)`` in ``count`` processes (in this one, if it is one); all must succeed."""
    if count == 1:
        work(0)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        spawn(_start, args=(count, store, work), nprocs=count, join=True)  # type: ignore[no-untyped-call]


def _start(rank: int, count: int, store: str, work: Callable[[int], None]) -> None:
    """Join the group of processes and work."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count
    )
    try:
        work(rank)
    finally:
        distributed.destroy_process_group()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes; nothing to do for one process."""
    if not distributed.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def share_work(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Apply a row-wise function to ``rows``, each process to its share; all get all results."""
    if not distributed.is_initialized():
        return function(rows)
    rank, size = distributed.get_rank(), distributed.get_world_size()
    first, last = len(rows) * rank // size, len(rows) * (rank + 1) // size
    results = torch.zeros_like(rows)
    results[first:last] = function(rows[first:last])
    distributed.all_reduce(results)
    return results


def wait_for_all() -> None:
    """Return once every process has come here."""
    if distributed.is_initialized():
        distributed.barrier()
