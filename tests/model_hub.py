"""A model hub on loopback: the requests that the hub's client sends, and faults on demand.

Of the protocol it knows what a download needs: a revision's commit, a commit's list of files, and
files with their digests as ETag. Weights are served as LFS files, the others as git blobs.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

LFS = (".safetensors", ".bin", ".pth")


@dataclass
class Repository:
    """Commits by name, and the faults of their server."""

    #: folders by commit
    commits: dict[str, Path]
    #: commits by branch
    branches: dict[str, str]
    #: status and error code of every answer
    refused: tuple[int, str] | None = None
    #: file whose middle byte is changed on the way
    damaged: str = ""
    #: ETags that are sent instead of the right ones
    etags: dict[str, str] = field(default_factory=dict)
    #: files whose connection breaks after that many bytes, and how often it still will
    cut: dict[str, list[int]] = field(default_factory=dict)
    #: seconds before every answer
    delay: float = 0.0


@dataclass
class Hub:
    """Repositories by ``owner/name``, and what was asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    #: ``GET path`` and ``HEAD path``
    requests: list[str] = field(default_factory=list)
    #: first byte of each file's body that was sent
    ranges: list[tuple[str, int]] = field(default_factory=list)

    def add(self, name: str, folder: Path, commit: str = "1" * 40) -> Repository:
        """Publishes a folder as ``main``."""
        repository = self.repositories.setdefault(name, Repository({}, {}))
        repository.commits[commit] = folder
        repository.branches["main"] = commit
        return repository

    def asked_for(self, *endings: str) -> list[str]:
        """Bodies of files that were asked for."""
        return [r for r in self.requests if r.startswith("GET") and r.endswith(endings)]


def git_blob(content: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def etag(path: Path) -> str:
    """SHA-256 of an LFS file, else the git blob's id."""
    content = path.read_bytes()
    is_lfs = path.suffix in LFS
    return hashlib.sha256(content).hexdigest() if is_lfs else git_blob(content)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing: the hub keeps its own list."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _answer(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.hub.requests.append(f"{self.command} {'/'.join(parts)}")
        api = parts[:2] == ["api", "models"]
        owner, name, kind, revision, *path = (*(parts[2:] if api else parts), "", "")[:99]
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if repository is None:
            self._send(401, X_Error_Code="RepoNotFound")
            return
        time.sleep(repository.delay)
        if repository.refused:
            status, code = repository.refused
            self._send(status, X_Error_Code=code)
            return
        commit = repository.branches.get(revision, revision)
        folder = repository.commits.get(commit)
        if folder is None:
            self._send(404, X_Error_Code="RevisionNotFound")
        elif kind == "revision":
            info = {"id": f"{owner}/{name}", "sha": commit, "siblings": [], "private": False}
            self._send(200, json.dumps({"_id": "0", "tags": [], **info}).encode())
        elif kind == "tree":
            self._send(200, json.dumps([_entry(f) for f in sorted(folder.iterdir())]).encode())
        else:
            self._file(repository, folder / "/".join(path).strip("/"), commit)

    def _file(self, repository: Repository, path: Path, commit: str) -> None:
        if not path.is_file():
            self._send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        content = bytearray(path.read_bytes())
        tag = repository.etags.get(path.name, etag(path))
        if repository.damaged == path.name:
            content[len(content) // 2] ^= 0x40
        begin = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        self.send_response(206 if begin else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{tag}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.ranges.append((path.name, begin))
        after, times = repository.cut.get(path.name, [0, 0])
        if times:
            repository.cut[path.name][1] -= 1
            self.wfile.write(content[begin : begin + after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(content[begin:])


def _entry(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    size = {"size": len(content)}
    entry = {"type": "file", "path": path.name, "oid": git_blob(content), **size}
    if path.suffix in LFS:
        sha256 = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\n"
        entry["oid"] = git_blob(f"{pointer}size {len(content)}\n".encode())
        entry["lfs"] = {"oid": sha256, "pointerSize": 135, **size}
    return entry


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A hub, to which this process's hub client talks, with an empty cache."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
