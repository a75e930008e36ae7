"""A server in a process of its own, and what its tests send."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx

from tests.runtime_support import IMAGES, ROOT, SCENES

__all__ = ["IMAGES", "SCENES"]
START_S = 600.0
TOKEN = "a-token-of-the-tests-0123456789"  # noqa: S105


def encoded(index: int = 0, kind: str = "PNG") -> bytes:
    """A scene as a file's bytes."""
    stream = io.BytesIO()
    IMAGES[index].save(stream, kind)
    return stream.getvalue()


def data_url(index: int = 0) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(index)).decode()


def chat(model: str, *parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A chat request about the first scene."""
    picture = {"type": "image_url", "image_url": {"url": data_url()}}
    return {"model": model, "messages": [{"role": "user", "content": [picture, *parts]}], **more}


class Server:
    """``blip-edge serve`` in a process; ``url`` is where it listens."""

    def __init__(self, artifacts: Path, *flags: str, target: str = "onnx", **environment: str):
        command = [sys.executable, "-m", "runtime", "serve", "--artifacts", str(artifacts)]
        backend = ["--compare" if "," in target else "--target", target]
        if "onnx" in target:
            backend += ["--threads", "1"]
        port = [] if "--port" in flags else ["--port", "0"]
        self.process = subprocess.Popen(
            [*command, *backend, *port, *flags],
            cwd=ROOT,
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()
        if not self.said.startswith("serving "):
            self.said += self.process.stderr.read()
            self.process.wait()
        self.url = self.said.split(" ")[1].rstrip("/") if "http" in self.said else ""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_ready(self) -> None:
        end = time.monotonic() + START_S
        while httpx.get(f"{self.url}/readyz").status_code != 200:
            assert self.process.poll() is None, self.rest()
            assert time.monotonic() < end, "the server did not get ready"
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends the process with a signal; returns its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return self.process.wait(START_S)

    def rest(self) -> str:
        """What else it printed."""
        assert self.process.stderr is not None
        return self.process.stderr.read()


@contextlib.contextmanager
def serving(artifacts: Path, *flags: str, **more: Any) -> Iterator[Server]:
    """A server that is ready."""
    server = Server(artifacts, *flags, **more)
    try:
        assert server.url, server.said
        server.wait_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)
        assert server.process.stderr is not None
        server.process.stderr.close()
