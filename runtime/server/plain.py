"""``/caption``, ``/vqa`` and ``/match``: a picture or JSON in, the command line's record out."""

from __future__ import annotations

from typing import Any, Callable, Coroutine, Dict, List

from starlette.requests import Request
from starlette.responses import Response

from ..tasks.generating import Generated
from ..tasks.task import Result
from .answering import Desk, Taken
from .bodies import read_asked
from .refusals import Json

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
#: Path, task, and what the task's text is called.
ENDPOINTS = (
    ("/caption", "caption", "prompt"),
    ("/vqa", "vqa", "question"),
    ("/match", "itm", "text"),
)


def endpoint(desk: Desk, task: str, asks: str) -> Endpoint:
    """The endpoint of one task."""

    async def answered(request: Request) -> Response:
        kind = request.headers.get("content-type", "")
        body, query = await request.body(), request.query_params
        taken = await desk.take(lambda: read_asked(task, asks, kind, body, query))
        found = _record(taken, await desk.results(taken, request))
        if isinstance(found.get("token_ids"), list):
            desk.metrics.tokens.inc(len(found["token_ids"]))
        return Json({**found, **taken.extras()})

    async def limited(request: Request) -> Response:
        return await desk.limited(request, answered(request))

    return limited


def _record(taken: Taken, results: List[Result]) -> Dict[str, Any]:
    if isinstance(results[0], Generated):
        return results[0].record()
    texts = taken.job.texts
    matches = [{"text": text, **result.record()} for text, result in zip(texts, results)]
    return {"matches": sorted(matches, key=lambda match: -match["probability"])}
