"""Spreads items over worker processes; each keeps one subject open."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process

from configs.errors import ToolError
from verify.evaluation.answer_store import Answer
from verify.evaluation.answering import Answerer, open_answerer
from verify.evaluation.items import Item
from verify.evaluation.subjects import Subject

#: Items per job: a target batches sixteen images; the checkpoint batches texts of equal length.
_TARGET_ITEMS, _CHECKPOINT_ITEMS, _SIMULATED_ITEMS = 48, 96, 2
#: Images whose candidates one job judges.
_JUDGED_ITEMS = 8

Answered = list[tuple[int, Answer]]


@dataclass(frozen=True)
class Job:
    """Numbered items for one subject."""

    subject: Subject
    items: Sequence[tuple[int, Item]]
    #: the matching head's work instead: texts to judge with each item's image
    judged: Sequence[Sequence[str]] = ()


def jobs_of(
    subject: Subject,
    items: Sequence[tuple[int, Item]],
    judged: Sequence[Sequence[str]] = (),
) -> list[Job]:
    """Cuts numbered items, and the texts to judge for each if any, into jobs."""
    size = _TARGET_ITEMS if subject.artifacts is not None else _CHECKPOINT_ITEMS
    if judged or subject.simulated:
        size = _JUDGED_ITEMS if judged else _SIMULATED_ITEMS
    starts = range(0, len(items), size)
    return [Job(subject, items[i : i + size], judged[i : i + size]) for i in starts]


class Workers(AbstractContextManager["Workers"]):
    """A pool of processes; one worker is this process, and it alone drives simulators."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._threads = max(1, len(os.sched_getaffinity(0)) // count)
        self._pool: ProcessPoolExecutor | None = None

    def __exit__(self, *failure: object) -> None:
        _close()
        if self._pool is not None:
            self._pool.shutdown(wait=failure[0] is None, cancel_futures=True)

    def run(self, jobs: Sequence[Job]) -> Iterator[Answered]:
        """Yields each finished job's answers, in any order.

        Raises:
            InputError: an item cannot be used.
            ToolError: a backend failed, or a worker process died.
        """
        if not jobs:
            return
        if self.count == 1 or jobs[0].subject.simulated:
            for job in jobs:
                yield _do(job, None)
            if jobs[0].subject.simulated:
                # Simulators are processes that keep a core busy.
                _close()
            return
        try:
            if self._pool is None:
                # Not forked: backends and torch have threads.
                self._pool = ProcessPoolExecutor(
                    self.count, mp_context=get_context("spawn"), initializer=_start_worker
                )
            for done in as_completed([self._pool.submit(_do, job, self._threads) for job in jobs]):
                yield done.result()
        except BrokenProcessPool:
            raise ToolError(
                "a worker process died, perhaps for want of memory; run again to go on from "
                "here, with fewer --workers"
            ) from None


def _start_worker() -> None:
    # The parent decides: it stops handing out jobs and shuts the pool down.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that is killed cannot shut its pool down; its workers would wait for ever.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


#: The subject that this process has open.
_OPEN: dict[tuple[str, str], Answerer] = {}


def _answerer(subject: Subject, threads: int | None) -> Answerer:
    key = (subject.task.task, subject.name)
    if key not in _OPEN:
        _close()
        _OPEN[key] = open_answerer(subject, threads)
    return _OPEN[key]


def _close() -> None:
    while _OPEN:
        _OPEN.popitem()[1].close()


def _do(job: Job, threads: int | None) -> Answered:
    answerer = _answerer(job.subject, threads)
    numbers, items = zip(*job.items, strict=True)
    if not job.judged:
        return list(zip(numbers, answerer.answers(items), strict=True))
    return [
        (number, {"scores": answerer.judge(item.picture.load(), texts)})
        for number, item, texts in zip(numbers, items, job.judged, strict=True)
    ]
