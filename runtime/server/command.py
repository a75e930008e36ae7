"""``blip-edge serve``: listens, answers, and ends without losing what it works on."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from types import FrameType
from typing import Optional

import uvicorn

from ..cli.options import targets
from ..cli.reports import say
from ..errors import BlipEdgeError, InputError
from .app import build_app
from .metrics import Metrics
from .models import Models, explained
from .settings import ServerSettings, read_token

#: Connections beyond this many are answered 503 by uvicorn itself.
_MOST_CONNECTIONS = 1000
_BACKLOG = 2048
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(options: argparse.Namespace) -> int:
    """Runs the server until a signal ends it; returns the exit code."""
    settings = ServerSettings(
        host=options.host,
        port=options.port,
        token=read_token(options.token_file),
        names=frozenset(name.lower() for name in [options.host, *options.allow_host]),
        queue=options.queue,
        maximum_bytes=options.max_bytes,
        timeout_s=options.timeout,
        batch_wait_s=options.batch_wait,
    )
    metrics = Metrics()
    models = Models(options, targets(options), settings, metrics)
    listening = _listen(settings)

    def stop() -> None:
        server.should_exit = True

    server = uvicorn.Server(
        uvicorn.Config(
            build_app(models, settings, metrics, stop),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=int(settings.timeout_s) + 1,
        )
    )

    def end(number: int, _: Optional[FrameType]) -> None:
        # uvicorn raises a signal once more after it has followed it.
        if not server.started:
            raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in _SIGNALS}
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    what = f"{', '.join(models.tasks)} on {', '.join(models.targets)}"
    say(f"serving http://{shown}:{port}/ ({what})", sys.stderr)
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listening.close()
    if isinstance(models.failure, BlipEdgeError):
        raise models.failure
    if models.failure is not None:
        say(f"error: {explained(models.failure)}", sys.stderr)
    return 0 if models.failure is None else 1


def _listen(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        where = f"--host {settings.host} --port {settings.port}"
        raise InputError(f"{where}: cannot listen there ({error}); choose another") from None
