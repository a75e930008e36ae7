"""What the server refuses: too many, too large, too slow, the wrong host, no token; and its end."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from runtime.__main__ import main
from runtime.cli.options import build_parser
from runtime.server.app import build_app
from runtime.server.guard import Guard
from runtime.server.metrics import Metrics
from runtime.server.models import Models
from runtime.server.settings import TOKEN_VARIABLE, ServerSettings, is_loopback
from tests.runtime_support import ROOT
from tests.server_support import TOKEN, Server, chat, encoded

MODEL = "reference-onnx"
PIXELS = 60_000
#: every address of this machine
ANYWHERE = "0.0.0.0"  # noqa: S104


class Held:
    """A server in this process whose nets work only when told to."""

    def __init__(self, artifacts: Path, **limits: Any) -> None:
        options = build_parser("0").parse_args(
            [
                *("serve", "--artifacts", str(artifacts), "--target", "onnx", "--threads", "1"),
                *("--max-pixels", str(PIXELS)),
            ]
        )
        settings = ServerSettings(**limits)
        self.metrics = Metrics()
        self.models = Models(options, ["onnx"], settings, self.metrics)
        self.guard: Any = build_app(self.models, settings, self.metrics, lambda: None)
        # Its lifespan, which loads the nets and starts the work, is never entered.
        self.client = TestClient(self.guard, base_url="http://127.0.0.1")

    @property
    def batcher(self) -> Any:
        return self.models.of("caption").batcher

    def begin(self) -> None:
        self.batcher.start(1, 16)

    def close(self) -> None:
        self.models.close()


@pytest.fixture
def held(exported_artifacts: Path) -> Iterator[Any]:
    made: list[Held] = []

    def make(**limits: Any) -> Held:
        made.append(Held(exported_artifacts, **limits))
        return made[-1]

    yield make
    for one in made:
        one.close()


def waits(count: int, server: Held) -> None:
    end = time.monotonic() + 60
    while server.models.waiting() < count:
        assert time.monotonic() < end, server.models.waiting()
        time.sleep(0.01)


def test_what_waits_is_worked_on_together_by_equal_arguments(held: Any) -> None:
    server = held()
    queries = [*[""] * 5, *["?num_beams=2"] * 2, "?do_sample=true&seed=3", "?do_sample=true&seed=3"]
    found: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda q=query: found.append(
                server.client.post(f"/caption{q}", content=encoded())
            )
        )
        for query in queries
    ]
    for thread in threads:
        thread.start()
    waits(len(queries), server)
    server.begin()
    for thread in threads:
        thread.join()
    assert {response.status_code for response in found} == {200}
    sizes = server.metrics.text().decode()
    # Five, two, and each seed alone.
    assert 'blip_edge_batch_rows_count{target="onnx",task="caption"} 4.0' in sizes
    assert 'blip_edge_batch_rows_sum{target="onnx",task="caption"} 9.0' in sizes
    assert len({response.json()["text"] for response in found if "seed" in str(response.url)}) == 1


def test_one_bad_job_does_not_fail_the_others(held: Any) -> None:
    server = held()
    found: dict[str, Any] = {}

    def ask(query: str) -> None:
        found[query] = server.client.post(f"/caption?max_length=4{query}", content=encoded())

    long = "&prompt=a+red+circle+and+a+blue+circle"
    threads = [threading.Thread(target=ask, args=(query,)) for query in ("", long)]
    for thread in threads:
        thread.start()
    waits(2, server)
    server.begin()
    for thread in threads:
        thread.join()
    assert found[""].json()["finished"] == "length"
    assert found[long].status_code == 400
    assert "the prompt alone has" in found[long].json()["error"]["message"]


def test_a_full_queue_answers_503_and_when_to_come_back(held: Any) -> None:
    server = held(queue=2, timeout_s=120.0)
    found: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(server.client.post("/caption", content=encoded()))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    waits(2, server)
    refused = server.client.post("/caption", content=encoded())
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "server_error"
    assert server.client.get("/healthz").status_code == 200
    assert server.client.get("/readyz").status_code == 503
    server.begin()
    for thread in threads:
        thread.join()
    assert [response.status_code for response in found] == [200, 200]
    assert server.client.post("/caption", content=encoded()).status_code == 200


def test_no_answer_in_time_is_504_and_nobody_works_on_it(held: Any) -> None:
    server = held(timeout_s=0.3)
    response = server.client.post("/caption", content=encoded())
    assert response.status_code == 504
    assert "--timeout" in response.json()["error"]["message"]
    stream = server.client.post("/v1/chat/completions", json=chat(MODEL, stream=True)).text
    events = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
    assert json.loads(events[-2])["error"]["code"] == 504
    assert events[-1] == "[DONE]"
    server.begin()
    server.batcher.close(60)
    assert 'blip_edge_batch_rows_count{target="onnx",task="caption"} 0.0' in (
        server.metrics.text().decode()
    )


def test_a_client_that_leaves_is_worked_for_no_more(held: Any) -> None:
    server = held()
    sent: list[Any] = []

    async def ask() -> None:
        messages = [{"type": "http.request", "body": encoded()}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            while not server.models.waiting():
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/caption", "raw_path": b"/caption",
            "query_string": b"", "headers": [(b"host", b"localhost")], "root_path": "",
        }  # fmt: skip
        await server.guard(scope, receive, send)

    asyncio.run(ask())
    assert sent[0]["status"] == 499
    assert all(not job.wanted for job in server.batcher._waiting)


def test_large_bodies_and_pictures_are_refused(held: Any) -> None:
    server = held(maximum_bytes=100_000)
    limit = ServerSettings(maximum_bytes=100_000).maximum_body
    for content in (b"x" * (limit + 1), iter([b"x" * limit, b"xx"])):
        response = server.client.post("/caption", content=content)
        assert response.status_code == 413
        assert "100000 bytes" in response.json()["error"]["message"]
    wide = b"P5 600 101 255\n" + bytes(60600)
    response = server.client.post("/caption", content=wide)
    assert response.status_code == 400
    assert "600 x 101 is more than 60000 pixels" in response.json()["error"]["message"]


def test_pages_of_other_sites_reach_nothing(held: Any) -> None:
    server = held(names=frozenset({"pictures.example"}))
    for host, status in (
        ("127.0.0.1:8000", 200),
        ("LOCALHOST:8000", 200),
        ("[::1]:8000", 200),
        ("pictures.example", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost:8000:evil.example", 400),
        ("", 400),
    ):
        response = server.client.get("/healthz", headers={"host": host})
        assert response.status_code == status, host
    for headers, status in (
        ({"origin": "http://127.0.0.1"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
    ):
        response = server.client.get("/server.json", headers=headers)
        assert response.status_code == status, headers
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert "default-src 'none'" in response.headers["content-security-policy"]


def test_a_token_is_needed_for_everything_but_the_page_and_the_probes(held: Any) -> None:
    server = held(host=ANYWHERE, token=TOKEN)
    asked = {
        path: server.client.get(path).status_code
        for path in ("/", "/page.js", "/openapi.json", "/healthz", "/metrics", "/v1/models", "/x")
    }
    assert [path for path, status in asked.items() if status == 401] == [
        "/metrics",
        "/v1/models",
        "/x",
    ]
    for given, status in (
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
        (f"Bearer {TOKEN}x", 401),
        (f"Basic {TOKEN}", 401),
        ("Bearer ", 401),
        ("Bearer \xff", 401),
    ):
        headers = [(b"authorization", given.encode("latin-1"))]
        response = server.client.get("/server.json", headers=headers)
        assert response.status_code == status, given
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", ANYWHERE], TOKEN_VARIABLE),
        (["--token-file", "short"], "at least 16"),
        (["--token-file", "none"], "none: cannot be read"),
        (["--port", "70000"], "--port 70000"),
        (["--queue", "0"], "--queue 0"),
        (["--compare", "onnx,bm1690"], "bm1690"),
        (["--artifacts", "."], "no caption/manifest.json"),
        (["--host", "192.0.2.1", "--token-file", "long"], "cannot listen there"),
    ],
)
def test_a_server_that_cannot_be_says_why(
    exported_artifacts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    Path("short").write_text("secret")
    Path("long").write_text(f"{TOKEN}\n")
    artifacts = ["--artifacts", str(exported_artifacts), "--target", "onnx"]
    assert main(["serve", *(artifacts[:2] if "--compare" in flags else artifacts), *flags]) == 2
    assert message in capsys.readouterr().err


def begun(server: Server) -> socket.socket:
    """A request of which half was sent."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=120)
    head = f"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(encoded())}\r\n\r\n"
    connection.sendall(head.encode() + encoded()[:20])
    return connection


def finished(connection: socket.socket) -> bytes:
    connection.sendall(encoded()[20:])
    answer = b""
    while part := connection.recv(65536):
        answer += part
        if b"}" in part:
            break
    connection.close()
    return answer


def test_the_end_waits_for_what_runs_and_a_kill_leaves_nothing_behind(
    exported_artifacts: Path,
) -> None:
    killed = Server(exported_artifacts)
    port = str(killed.port)
    connection = begun(killed)
    assert killed.stop(signal.SIGKILL) == -signal.SIGKILL
    connection.close()
    server = Server(exported_artifacts, "--port", port)
    assert server.url.endswith(port), server.said
    server.wait_ready()
    assert finished(begun(server)).startswith(b"HTTP/1.1 200")
    connection = begun(server)
    time.sleep(0.5)  # until the server has accepted it
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)  # until the server closes its door
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", int(port)), timeout=5)
    assert server.process.poll() is None
    assert finished(connection).startswith(b"HTTP/1.1 200")
    assert server.process.wait(60) == 0
    assert server.rest() == ""


def test_the_guard_closes_what_is_no_http() -> None:
    sent: list[Any] = []

    async def run() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        guard = Guard(None, ServerSettings(), Metrics(), frozenset(), frozenset())  # type: ignore[arg-type]
        await guard({"type": "websocket"}, None, send)  # type: ignore[arg-type]

    asyncio.run(run())
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_the_examples_start_what_there_is() -> None:
    folder = ROOT / "docs" / "examples"
    (line,) = re.findall(r"^ExecStart=(.*)$", (folder / "blip-edge.service").read_text(), re.M)
    service = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["blip-edge"]
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", service["build"]["dockerfile_inline"], re.M)
    for command in (line.split(), [*json.loads(entry), *service["command"]]):
        options = build_parser("0").parse_args(command[1:])
        assert options.command == "serve"
        assert options.token_file is not None
        assert not is_loopback(options.host)
