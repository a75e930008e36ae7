"""The application: its routes, and what begins and ends with it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import AsyncIterator, Callable, Dict, List

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from .answering import Desk
from .chat import Chat
from .guard import Guard
from .metrics import Metrics
from .models import Models
from .plain import ENDPOINTS, Endpoint, endpoint
from .refusals import Json, RefusedError, refused
from .settings import ServerSettings

_PAGE = Path(__file__).parent / "page"
_JAVASCRIPT, _CSS = "text/javascript", "text/css"
#: Files of the page, by path: never a name that a client sends.
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", _CSS),
    "/page.js": ("page.js", _JAVASCRIPT),
    "/picture.js": ("picture.js", _JAVASCRIPT),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/openapi.json": ("openapi.json", "application/json"),
}
#: Besides files, what a machine that looks after this one asks without a token.
_OPEN = ("/healthz", "/readyz")


def build_app(
    models: Models, settings: ServerSettings, metrics: Metrics, failed: Callable[[], None]
) -> ASGIApp:
    """The guarded application; ``failed`` is called where a net cannot be loaded."""
    desk = Desk(models, settings, metrics)
    chat = Chat(desk)
    metrics.watch(models.waiting, models.ready.is_set)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        models.load(failed)
        yield
        desk.close()
        models.close()

    async def healthy(_: Request) -> Response:
        return Json({"status": "ok"})

    async def ready(_: Request) -> Response:
        if models.ready.is_set():
            return Json({"status": "ready"})
        raise RefusedError(503, "nets are being loaded", headers={"Retry-After": "1"})

    async def measured(_: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def described(_: Request) -> Response:
        return Json({"pipeline": models.pipeline, "tasks": models.tasks, "models": models.ids})

    gets: Dict[str, Endpoint] = {
        "/healthz": healthy,
        "/readyz": ready,
        "/metrics": measured,
        "/server.json": described,
        "/v1/models": chat.models,
        "/v1/models/{model:path}": chat.models,
        **{path: _file(name, kind) for path, (name, kind) in _FILES.items()},
    }
    posts: Dict[str, Endpoint] = {
        path: endpoint(desk, task, asks) for path, task, asks in ENDPOINTS
    }
    posts["/v1/chat/completions"] = chat.completions
    routes: List[Route] = [
        *(Route(path, handler, methods=["GET"]) for path, handler in gets.items()),
        *(Route(path, handler, methods=["POST"]) for path, handler in posts.items()),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: refused, RefusedError: refused, 500: refused},
    )
    open_paths = frozenset([*_FILES, *_OPEN])
    return Guard(app, settings, metrics, open_paths, frozenset([*gets, *posts]))


def _file(name: str, kind: str) -> Endpoint:
    content = (_PAGE / name).read_bytes()

    async def answered(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answered
