"""Works through many items with the device kept busy: loading, inference and output overlap.

Loader threads prepare items ahead of the workers, workers take whole batches, and results come out
in the order of the items. Both queues are bounded, so memory does not depend on how many items
there are.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import (
    Callable,
    Deque,
    Generic,
    Iterable,
    Iterator,
    List,
    Optional,
    Tuple,
    TypeVar,
    Union,
)

from ..decoding.batching import StopSignal
from ..errors import InputError
from ..preprocessing.images import processors

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

#: Loaders beyond this many wait for each other's disk and memory more than they help.
_MOST_LOADERS = 4
#: A run of bad items is reported after this many batches at the latest.
_PROBLEMS_AT_ONCE = 4


@dataclass
class _Batch(Generic[Item, Result]):
    """Items in their order; those without a problem have a result in the future, in order."""

    items: List[Item]
    problems: List[Optional[InputError]]
    future: "Future[List[Result]]"


class Turns:
    """Loaders and workers by turns, for work that wants all processors.

    A net's threads share every operation evenly and wait for the slowest of them: one loader beside
    them takes the time of all.
    """

    def __init__(self, *, wanted: bool) -> None:
        """Without being ``wanted`` it lets everyone work at any time."""
        self._wanted = wanted
        #: calls of ``load`` at a time that use the processors well; 0: as ``Stream`` chooses
        self.loaders = min(_MOST_LOADERS, processors()) if wanted else 0
        self._changed = threading.Condition()
        self._loading = 0
        #: works that go on, or wait for the loaders that have begun
        self._working = 0

    @contextmanager
    def load(self) -> Iterator[None]:
        """A loader's turn: not while there is work."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._wanted and self._working))
            self._loading += 1
        try:
            yield
        finally:
            with self._changed:
                self._loading -= 1
                self._changed.notify_all()

    @contextmanager
    def work(self) -> Iterator[None]:
        """A worker's turn: as soon as the loaders that have begun are done."""
        with self._changed:
            self._working += 1
            self._changed.wait_for(lambda: not (self._wanted and self._loading))
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()


class Stream(Generic[Item, Prepared, Result]):
    """Items through ``load``, one by one, and ``work``, in batches; results in order.

    ``load`` may raise ``InputError``: the item is then reported in its place and left out of its
    batch. Any other exception of ``load`` or ``work`` ends the stream where it belongs.
    """

    def __init__(
        self,
        load: Callable[[Item], Prepared],
        work: Callable[[List[Tuple[Item, Prepared]]], List[Result]],
        *,
        batch: int,
        workers: int = 1,
        loaders: int = 0,
        stop: Optional[StopSignal] = None,
    ) -> None:
        """Starts nothing yet.

        Args:
            load: prepares one item; called from loader threads.
            work: prepared items to one result per item; called from worker threads.
            batch: most items per call of ``work``.
            workers: calls of ``work`` at a time.
            loaders: calls of ``load`` at a time; 0: half of the processors, at most four.
            stop: set when the stream ends early, for ``work`` to notice.
        """
        self._load = load
        self._work = work
        self._batch = batch
        self._workers = workers
        self._loaders = loaders or max(1, min(_MOST_LOADERS, (os.cpu_count() or 1) // 2))
        self._stop = stop or StopSignal()

    def __call__(self, items: Iterable[Item]) -> Iterator[Tuple[Item, Union[Result, InputError]]]:
        """Yields every item with its result, or with what is wrong with it, in order."""
        loaders = ThreadPoolExecutor(self._loaders, thread_name_prefix="load")
        workers = ThreadPoolExecutor(self._workers, thread_name_prefix="work")
        loading: Deque[Tuple[Item, "Future[Prepared]"]] = deque()
        working: Deque[_Batch[Item, Result]] = deque()
        source = iter(items)
        try:
            while True:
                # One batch more than is being worked on, so that no worker waits for output.
                while len(working) <= self._workers:
                    following = self._next(source, loading, loaders, workers)
                    if following is None:
                        break
                    working.append(following)
                if not working:
                    return
                done = working.popleft()
                results = iter(done.future.result())
                for item, problem in zip(done.items, done.problems):
                    yield item, (next(results) if problem is None else problem)
        finally:
            self._stop.set()
            for _, prepared in loading:
                prepared.cancel()
            for batch in working:
                batch.future.cancel()
            loaders.shutdown(wait=True)
            workers.shutdown(wait=True)

    def _next(
        self,
        source: Iterator[Item],
        loading: Deque[Tuple[Item, "Future[Prepared]"]],
        loaders: ThreadPoolExecutor,
        workers: ThreadPoolExecutor,
    ) -> Optional[_Batch[Item, Result]]:
        """Hands the next loaded items to the workers, or returns None after the last."""
        items: List[Item] = []
        problems: List[Optional[InputError]] = []
        good: List[Tuple[Item, Prepared]] = []
        while len(good) < self._batch and len(items) < _PROBLEMS_AT_ONCE * self._batch:
            # The batch that is taken next, and what the loaders have in hand.
            for item in islice(source, max(0, self._batch + self._loaders - len(loading))):
                loading.append((item, loaders.submit(self._load, item)))
            if not loading:
                break
            item, future = loading.popleft()
            items.append(item)
            try:
                good.append((item, future.result()))
                problems.append(None)
            except InputError as error:
                problems.append(error)
        if not items:
            return None
        return _Batch(items, problems, workers.submit(self._run, good))

    def _run(self, batch: List[Tuple[Item, Prepared]]) -> List[Result]:
        self._stop.check()
        return self._work(batch) if batch else []
