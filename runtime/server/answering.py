"""From a request to its job, and from the job to its results, within the time allowed."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Awaitable, Callable, Dict, List, Optional

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ..cli.reports import say
from ..errors import InputError
from ..tasks.task import Result
from .batcher import Job, OnToken
from .bodies import Asked
from .metrics import Metrics
from .models import Model, Models, explained
from .refusals import RefusedError
from .settings import ServerSettings

#: Threads that decode pictures: more would take the processors from the nets.
_MOST_LOADERS = 4
#: What nginx calls a request whose client went away.
_GONE = 499


@dataclass(frozen=True)
class Taken:
    """A request that waits for its results."""

    model: Model
    job: Job
    begin: float

    def extras(self) -> Dict[str, Any]:
        """What an answer says besides its result."""
        asks = self.model.task
        milliseconds = round(1000 * (time.perf_counter() - self.begin), 3)
        found = {"target": asks.artifacts.target, "milliseconds": milliseconds}
        warnings = [asks.read_text(text).warning for text in self.job.texts]
        known = "; ".join(filter(None, warnings))
        return {**found, "warning": known} if known else found


class Desk:
    """Takes requests in and hands results out."""

    def __init__(self, models: Models, settings: ServerSettings, metrics: Metrics) -> None:
        self.models = models
        self.metrics = metrics
        self.timeout_s = settings.timeout_s
        loaders = max(1, min(_MOST_LOADERS, (os.cpu_count() or 1) // 2))
        self._loaders = ThreadPoolExecutor(loaders, thread_name_prefix="load")

    async def take(self, read: Callable[[], Asked], on_token: Optional[OnToken] = None) -> Taken:
        """Reads a request and decodes its picture in a thread, and puts its job into the queue.

        Raises:
            InputError: a text, picture or argument that cannot be used.
            RefusedError: a request that cannot be used.
        """
        begin = time.perf_counter()

        def prepared() -> Taken:
            asked = read()
            model = self.models.of(asked.task, asked.target)
            for text in asked.texts:
                model.task.read_text(text)
            image = model.task.prepare(asked.image)
            return Taken(model, Job(image, asked.texts, asked.options, on_token), begin)

        with self.models.arrivals:
            taken = await asyncio.get_running_loop().run_in_executor(self._loaders, prepared)
            taken.model.batcher.submit(taken.job)
        return taken

    async def results(self, taken: Taken, request: Request) -> List[Result]:
        """Waits for the results; gives the job up if nobody waits for it any more.

        Raises:
            ClientDisconnect: the client is gone.
        """
        found = asyncio.wrap_future(taken.job.future)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            both: "List[asyncio.Future[Any]]" = [found, gone]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not found.done():
                raise ClientDisconnect
            results = found.result()
        finally:
            gone.cancel()
            taken.job.abandon()
        return results

    async def limited(self, request: Request, work: Awaitable[Response]) -> Response:
        """The response that ``work`` makes in time.

        Raises:
            RefusedError: there is none.
        """
        try:
            return await asyncio.wait_for(work, self.timeout_s)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            raise self.refusal(error, request.url.path) from None

    def refusal(self, error: BaseException, path: str) -> RefusedError:
        """What a client is told of an error; what is not its own fault is printed as well."""
        if isinstance(error, RefusedError):
            return error
        if isinstance(error, InputError):
            return RefusedError(400, str(error))
        if isinstance(error, asyncio.TimeoutError):
            limit = f"no answer within {self.timeout_s:g} s"
            return RefusedError(
                504, f"{limit}; ask for less, or let the server take longer (--timeout)"
            )
        say(f"error: {path}: {explained(error)}", sys.stderr)
        return RefusedError(500, "the server failed; its log says why")

    def close(self) -> None:
        """Ends the threads."""
        self._loaders.shutdown(wait=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
