"""Dynamic batching: what waits for one task on one target is worked on together.

A worker takes what waits, up to what the artifact takes at once. It waits a moment only while
further pictures are being decoded, so a lone request is never held back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Callable, ContextManager, Deque, Dict, Iterator, List, Optional, Tuple

from ..decoding.batching import StoppedError, StopSignal
from ..preprocessing.images import PreparedImage
from ..tasks.task import Result

#: Called with each new token id, from a worker's thread.
OnToken = Callable[[int], None]


@dataclass(eq=False)
class Job:
    """One request for one picture: texts, arguments of generation, and where the results go."""

    image: PreparedImage
    texts: Tuple[Optional[str], ...]
    options: Dict[str, Any] = field(default_factory=dict)
    on_token: Optional[OnToken] = None
    future: "Future[List[Result]]" = field(default_factory=Future)
    wanted: bool = True

    @property
    def key(self) -> Any:
        """Jobs with equal keys may share a batch: a seed belongs to the first row of a call."""
        return id(self) if "seed" in self.options else sorted(self.options.items())

    def abandon(self) -> None:
        """Nobody waits for the results any more."""
        self.wanted = False
        self.future.cancel()


class _WantedSignal(StopSignal):
    """Stops the work on jobs of which none is wanted."""

    def __init__(self, jobs: List[Job]) -> None:
        super().__init__()
        self._jobs = jobs

    def check(self) -> None:
        """See ``StopSignal``."""
        if not any(job.wanted for job in self._jobs):
            raise StoppedError
        super().check()


class Arrivals:
    """How many requests are being decoded right now."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.count += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self.count -= 1


#: Jobs with equal keys and a signal to stop, to one list of results per job.
Work = Callable[[List[Job], StopSignal], List[List[Result]]]
#: Told the size of each batch; measures it.
Measure = Callable[[int], ContextManager[None]]


class Batcher:
    """The queue of one task on one target, and the threads that work on it."""

    def __init__(self, work: Work, arrivals: Arrivals, wait_s: float, measure: Measure) -> None:
        self._work = work
        self._arrivals = arrivals
        self._wait_s = wait_s
        self._measure = measure
        self._changed = threading.Condition()
        self._waiting: Deque[Job] = deque()
        self._closing = False
        self._threads: List[threading.Thread] = []

    def start(self, workers: int, most: int) -> None:
        """Begins to work: so many threads, each on batches of at most ``most`` jobs."""
        for _ in range(workers):
            # Daemons: a backend that hangs must not keep the process from ending.
            thread = threading.Thread(target=self._run, args=(most,), name="batch", daemon=True)
            self._threads.append(thread)
            thread.start()

    def submit(self, job: Job) -> None:
        """Puts a job into the queue."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    def close(self, timeout_s: float) -> None:
        """Ends the threads after what waits is done."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)

    def _run(self, most: int) -> None:
        for jobs in iter(lambda: self._take(most), None):
            running = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if running:
                with self._measure(len(running)):
                    self._answer(running)

    def _take(self, most: int) -> Optional[List[Job]]:
        """The next batch, or None at the end."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return None
                self._changed.wait()
            deadline = time.monotonic() + self._wait_s
            while self._arrivals.count and len(self._waiting) < most:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return list(self._picked(most))

    def _picked(self, most: int) -> Iterator[Job]:
        """Takes the oldest job and those that may go with it."""
        waiting, key = list(self._waiting), self._waiting[0].key if self._waiting else None
        self._waiting.clear()
        for job in waiting:
            if most > 0 and job.key == key:
                most -= 1
                yield job
            else:
                self._waiting.append(job)
        if self._waiting:
            self._changed.notify()

    def _answer(self, jobs: List[Job]) -> None:
        try:
            results = self._work(jobs, _WantedSignal(jobs))
        except BaseException as error:  # a panic of a library in Rust is no Exception
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            # One bad job must not fail the others; what was streamed is not streamed again.
            for job in jobs:
                job.on_token = None
                self._answer([job])
            return
        for job, found in zip(jobs, results):
            job.future.set_result(found)
