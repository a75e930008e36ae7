"""What every request passes first: who asks, from where, how much, and how many at a time.

A page of another site must reach nothing, even on a server that listens on this machine alone:
its address may be that of a name made to point here (DNS rebinding), which the Host header tells,
or this one, which the browser's Origin header tells.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from typing import Any, Dict, FrozenSet

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics
from .refusals import RefusedError
from .settings import ServerSettings

#: What the page may load and do: its own files, and a picture or camera of the user's.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
_RETRY_AFTER_S = "1"
#: How long, and how much of, a refused request is read, so that its sender sees the answer.
_DRAIN_S = 5.0
_DRAIN_BYTES = 64 << 20


class Guard:
    """The outermost ASGI application."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        metrics: Metrics,
        open_paths: FrozenSet[str],
        paths: FrozenSet[str],
    ) -> None:
        """Guards an application.

        Args:
            app: the application.
            settings: who may ask, and how much.
            metrics: counts the requests.
            open_paths: what needs no token.
            paths: what is counted under its own name.
        """
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._open = open_paths
        self._paths = paths
        self._accepted = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._guarded(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        begin, status, accepted = time.perf_counter(), 0, False

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
            if scope["method"] == "POST":
                self._accept()
                accepted = True
            await self._app(scope, self._bounded(receive), sent)
        except RefusedError as refusal:
            if not status:
                await _drain(receive)
                await refusal.response(scope, receive, sent)
        finally:
            if accepted:
                self._accepted -= 1
                self._metrics.in_flight.dec()
                self._metrics.seconds.labels(path).observe(time.perf_counter() - begin)
            # A client that goes before its answer has the status that nginx gives it.
            self._metrics.requests.labels(path, str(status or 499)).inc()

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise RefusedError(
                400, f"Host {host!r}: not a name of this server; allow it with --allow-host"
            )
        origin = headers.get("origin")
        elsewhere = origin is not None and origin.partition("://")[2] != host
        if elsewhere or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise RefusedError(
                403, f"Origin {origin!r}: pages of other sites may not ask this server"
            )
        token = self._settings.token
        if token is not None and scope["path"] not in self._open:
            kind, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), token.encode())
            if kind.lower() != "bearer" or not right:
                message = "Authorization: send 'Bearer' and this server's token"
                raise RefusedError(401, message, headers={"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if (
            not (length.isascii() and length.isdigit())
            or int(length[:20]) > self._settings.maximum_body
        ):
            raise self._too_large()

    def _is_ours(self, host: str) -> bool:
        name = _without_port(host).lower()
        if name == "localhost" or name in self._settings.names:
            return True
        try:
            # Nobody can make an address itself point elsewhere.
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _accept(self) -> None:
        if self._accepted >= self._settings.queue:
            message = f"{self._accepted} requests wait already; ask again later"
            raise RefusedError(503, message, headers={"Retry-After": _RETRY_AFTER_S})
        self._accepted += 1
        self._metrics.in_flight.inc()

    def _bounded(self, receive: Receive) -> Receive:
        """Receives a body of bounded size, whatever its headers say."""
        left = self._settings.maximum_body

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> RefusedError:
        limit = self._settings.maximum_bytes
        return RefusedError(413, f"body: a picture may have {limit} bytes; make it smaller")


async def _drain(receive: Receive) -> None:
    """Reads what a sender still sends: an answer before that could be lost with the connection."""

    async def rest() -> None:
        left = _DRAIN_BYTES
        while left > 0:
            message: Dict[str, Any] = dict(await receive())
            left -= len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return

    try:
        await asyncio.wait_for(rest(), _DRAIN_S)
    except asyncio.TimeoutError:
        return


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, _, port = host.rpartition(":")
    return name if name and port.isdigit() else host
