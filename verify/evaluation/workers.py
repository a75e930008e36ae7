"""Spreads items over worker processes; each keeps one subject open."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context, parent_process
from types import TracebackType

from configs.errors import ToolError
from verify.evaluation.answer_store import Answer
from verify.evaluation.answering import Answerer, open_answerer
from verify.evaluation.items import DataSet
from verify.evaluation.subjects import Subject

#: Items per job: a target batches sixteen images; the checkpoint batches texts of equal length.
_TARGET_ITEMS, _CHECKPOINT_ITEMS, _SIMULATED_ITEMS = 48, 96, 2

Answered = list[tuple[int, str, Answer]]


@dataclass(frozen=True)
class Job:
    """Items ``start`` up to ``stop`` of a data set, for one subject."""

    subject: Subject
    data_set: DataSet
    start: int
    stop: int
    #: the matching head's work instead: texts to judge per item number
    judged: tuple[tuple[int, tuple[str, ...]], ...] = ()


def job_items(subject: Subject) -> int:
    """How many items a job of this subject has."""
    if subject.simulated:
        return _SIMULATED_ITEMS
    return _TARGET_ITEMS if subject.artifacts is not None else _CHECKPOINT_ITEMS


class Workers:
    """A pool of processes; one worker is this process, and it alone drives simulators."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._threads = max(1, len(os.sched_getaffinity(0)) // count)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _close()
        if self._pool is not None:
            self._pool.shutdown(wait=error is None, cancel_futures=True)

    def run(self, jobs: Iterator[Job]) -> Iterator[tuple[Answered, float]]:
        """Yields each finished job's answers and its seconds, in any order.

        Raises:
            InputError: an item cannot be used.
            ToolError: a backend failed, or a worker process died.
        """
        first = next(jobs, None)
        if first is None:
            return
        if self.count == 1 or first.subject.simulated:
            for job in chain([first], jobs):
                yield _do(job, None)
            # Simulators are processes that keep a core busy.
            _close()
            return
        yield from self._parallel(first, jobs)

    def _parallel(self, first: Job, todo: Iterator[Job]) -> Iterator[tuple[Answered, float]]:
        pool = self._started()
        running: set[Future[tuple[Answered, float]]] = set()
        try:
            running.add(pool.submit(_do, first, self._threads))
            # Two jobs per worker are under way; answers never pile up.
            for job in todo:
                running.add(pool.submit(_do, job, self._threads))
                if len(running) >= 2 * self.count:
                    yield from self._finished(running)
            while running:
                yield from self._finished(running)
        except BrokenProcessPool:
            raise ToolError(
                "a worker process died, perhaps for want of memory; run again to go on from "
                "here, with fewer --workers"
            ) from None

    @staticmethod
    def _finished(
        running: set[Future[tuple[Answered, float]]],
    ) -> Iterator[tuple[Answered, float]]:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        running -= done
        for future in done:
            yield future.result()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Not forked: backends and torch have threads.
            self._pool = ProcessPoolExecutor(
                self.count, mp_context=get_context("spawn"), initializer=_start_worker
            )
        return self._pool


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


def _do(job: Job, threads: int | None) -> tuple[Answered, float]:
    started = time.perf_counter()
    answerer = _answerer(job.subject, threads)
    answered: Answered = []
    if job.judged:
        for number, texts in job.judged:
            (item,) = job.data_set.items(number, number + 1)
            scores = answerer.judge(item.picture.load(), texts)
            answered.append((number, item.picture.stamp(), {"scores": scores}))
    else:
        items = list(job.data_set.items(job.start, job.stop))
        stamps = [item.picture.stamp() for item in items]
        answers = answerer.answers(items)
        answered = list(zip(range(job.start, job.stop), stamps, answers, strict=True))
    return answered, time.perf_counter() - started


def jobs_of(subject: Subject, data_set: DataSet, missing: Sequence[range]) -> Iterator[Job]:
    """Jobs over the items that have no answer yet."""
    size = job_items(subject)
    for numbers in missing:
        for start in range(numbers.start, numbers.stop, size):
            yield Job(subject, data_set, start, min(numbers.stop, start + size))
