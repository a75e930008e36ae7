"""The server, asked by clients that know nothing of it, and by ones that mean it no good."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx2 as httpx
import jsonschema
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import Captioner, Matcher, QuestionAnswerer
from runtime.generation.settings import GenerationSettings
from runtime.server.chat import Spoken
from tests.runtime_support import ROOT, THREADS
from tests.server_support import IMAGES, Server, chat, data_url, encoded, serving

MODEL = "reference-onnx"
QUESTION = "how many shapes are there?"
TEXTS = ["two blue rings", "a red circle"]
PLAIN = ("/caption", "/vqa", "/match")


@pytest.fixture(scope="module")
def server(exported_artifacts: Path) -> Iterator[Server]:
    with serving(exported_artifacts) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def assistant(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as assistant:
        yield assistant


@pytest.fixture(scope="module")
def captions(exported_artifacts: Path) -> list[str]:
    with Captioner.from_artifacts(exported_artifacts, target="onnx", threads=THREADS) as captioner:
        return [caption.text for caption in captioner(IMAGES)]


@pytest.fixture(scope="module")
def answer(exported_artifacts: Path) -> str:
    options = {"target": "onnx", "threads": THREADS}
    with QuestionAnswerer.from_artifacts(exported_artifacts, **options) as answerer:
        text: str = answerer(IMAGES[0], QUESTION).text
    return text


HALF_A_CHARACTER = {
    "content": json.dumps({"image": data_url(), "question": "\ud800"}),
    "headers": {"content-type": "application/json"},
}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_a_picture_or_json_is_answered_as_by_python(
    client: httpx.Client, captions: list[str], answer: str, exported_artifacts: Path
) -> None:
    raw = client.post("/caption", content=encoded())
    assert raw.json()["text"] == captions[0]
    assert raw.json()["finished"] == "end"
    for image in (data_url(1), base64.b64encode(encoded(1)).decode()):
        assert client.post("/caption", json={"image": image}).json()["text"] == captions[1]
    asked = client.post("/vqa", params={"question": QUESTION}, content=encoded())
    assert asked.json()["text"] == answer
    asked = client.post("/vqa", json={"image": data_url(), "question": QUESTION, "num_beams": 3})
    assert asked.json()["score"] < 0
    found = client.post("/match", params={"text": TEXTS}, content=encoded()).json()["matches"]
    assert (
        found == client.post("/match", json={"image": data_url(), "text": TEXTS}).json()["matches"]
    )
    with Matcher.from_artifacts(exported_artifacts, target="onnx", threads=THREADS) as matcher:
        expected = {text: matcher(IMAGES[0], text).probability for text in TEXTS}
    assert [match["text"] for match in found] == sorted(TEXTS, key=lambda t: -expected[t])
    for match in found:
        assert match["probability"] == pytest.approx(expected[match["text"]], abs=1e-5)


def test_what_a_caption_starts_with_and_how_it_is_searched(client: httpx.Client) -> None:
    query = "/caption?prompt=a+picture+of&max_new_tokens=3&num_beams=2&num_return_sequences=2"
    found = client.post(query, content=encoded()).json()
    assert found["text"].startswith("a picture of ")
    assert found["finished"] == "length"
    assert len(found["alternatives"]) == 1


def test_openai_client_captions_and_answers(
    assistant: openai.OpenAI, captions: list[str], answer: str
) -> None:
    assert [model.id for model in assistant.models.list()] == [MODEL]
    assert assistant.models.retrieve(MODEL).owned_by == "blip-edge"
    caption = assistant.chat.completions.create(**chat(MODEL))
    assert caption.choices[0].message.content == captions[0]
    assert caption.choices[0].finish_reason == "stop"
    assert caption.usage.completion_tokens > 3
    assert (
        caption.usage.total_tokens == caption.usage.prompt_tokens + caption.usage.completion_tokens
    )
    asked = assistant.chat.completions.create(**chat(MODEL, words(QUESTION), temperature=0))
    assert asked.choices[0].message.content == answer
    assert asked.usage.prompt_tokens > caption.usage.prompt_tokens
    cut = assistant.chat.completions.create(**chat(MODEL, max_tokens=2))
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 2)
    scored = assistant.chat.completions.create(**chat(MODEL, logprobs=True))
    tokens = scored.choices[0].logprobs.content
    assert len(tokens) == caption.usage.completion_tokens
    mean = sum(token.logprob for token in tokens) / len(tokens)
    assert scored.model_extra["blip_edge"]["confidence"] == pytest.approx(math.exp(mean))
    sampled = [
        assistant.chat.completions.create(**chat(MODEL, temperature=1.5, seed=7, n=2))
        for _ in range(2)
    ]
    texts = [[choice.message.content for choice in one.choices] for one in sampled]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2


def test_openai_client_streams_token_by_token(
    assistant: openai.OpenAI, captions: list[str], answer: str
) -> None:
    request = chat(MODEL, stream=True, stream_options={"include_usage": True})
    chunks = list(assistant.chat.completions.create(**request))
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(delta or "" for delta in deltas) == captions[0]
    assert len([delta for delta in deltas if delta]) == len(captions[0].split())
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 3
    chunks = list(assistant.chat.completions.create(**chat(MODEL, words(QUESTION), stream=True)))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
    assert chunks[-1].usage is None


def test_openai_client_understands_what_is_wrong(assistant: openai.OpenAI) -> None:
    def ask(**request: Any) -> Any:
        return assistant.chat.completions.create(**request)

    with pytest.raises(openai.NotFoundError, match="reference-onnx"):
        ask(**chat("gpt-4o"))
    for url in ("https://example.org/a.jpg", "file:///etc/passwd", "/etc/passwd", "data:,x"):
        part = {"type": "image_url", "image_url": {"url": url}}
        with pytest.raises(openai.BadRequestError, match="no URL is opened"):
            ask(model=MODEL, messages=[{"role": "user", "content": [part]}])
    with pytest.raises(openai.BadRequestError, match="no picture"):
        ask(model=MODEL, messages=[{"role": "user", "content": "hello"}])
    with pytest.raises(openai.BadRequestError, match="tools: this server cannot"):
        ask(**chat(MODEL, tools=[{"type": "function", "function": {"name": "f"}}]))
    with pytest.raises(openai.BadRequestError, match="question of 800"):
        ask(**chat(MODEL, words("red " * 798), stream=True))


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl; install it")
def test_curl_needs_no_options_but_the_picture(server: Server, captions: list[str], tmp_path: Path):
    IMAGES[0].save(tmp_path / "scene.jpg", quality=100, subsampling=0)
    command = ["curl", "-sS", "--data-binary", "@scene.jpg", f"{server.url}/caption"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["text"] == captions[0]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl; install it")
def test_what_the_page_of_docs_shows_works(server: Server, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "serving.md").read_text().replace("http://127.0.0.1:8000", server.url)
    IMAGES[0].save(tmp_path / "photo.jpg", quality=100, subsampling=0)
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("curl ")]
    assert len(commands) >= 5
    for command in commands:
        result = subprocess.run(
            [*command, "-sS"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert not json.loads(result.stdout).keys() & {"error"}, command
    (program,) = re.findall(r"```python\n(.*?)```", page, re.S)
    result = subprocess.run(
        [sys.executable, "-c", program.replace("reference-openvino", MODEL)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "three"


def test_many_at_a_time_each_get_their_own_answer(client: httpx.Client, captions: list[str]):
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(
            lambda index: client.post("/caption", content=encoded(index)).json()["text"],
            [index % len(IMAGES) for index in range(48)],
        )
        assert list(found) == [captions[index % len(IMAGES)] for index in range(48)]


def test_answers_are_as_the_description_says(client: httpx.Client) -> None:
    description = client.get("/openapi.json").json()
    assert description["openapi"].startswith("3.1")

    def check(name: str, value: Any) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": description["components"]}
        jsonschema.Draft202012Validator(schema).validate(value)

    for schema in description["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    check("Generated", client.post("/caption", content=encoded()).json())
    check("Matches", client.post("/match?text=a", content=encoded()).json())
    check("ChatRequest", chat(MODEL))
    check("ChatCompletion", client.post("/v1/chat/completions", json=chat(MODEL)).json())
    check("ModelList", client.get("/v1/models").json())
    check("Server", client.get("/server.json").json())
    check("Status", client.get("/healthz").json())
    check("Status", client.get("/readyz").json())
    given = set(description["components"]["schemas"]["Generation"]["properties"])
    assert given == {item.name for item in fields(GenerationSettings)}
    for path, methods in description["paths"].items():
        for method in methods:
            response = client.request(method, path.replace("{model}", MODEL), content=b"")
            assert response.status_code in ((200,) if method == "get" else (400,)), path
            if method == "post":
                check("Error", response.json())
    response = client.put("/caption")
    assert response.status_code == 405
    check("Error", response.json())
    assert "blip_edge_batch_rows_bucket" in client.get("/metrics").text


@pytest.mark.parametrize(
    ("path", "request_", "message"),
    [
        ("/caption", {"content": b""}, "image: is empty"),
        ("/caption", {"content": b"no picture"}, "not an image"),
        ("/caption", {"content": encoded()[:90]}, "damaged image"),
        ("/caption", {"files": {"image": encoded()}}, "--data-binary"),
        ("/caption?target=bm1690", {"content": encoded()}, "this server has onnx"),
        ("/caption?num_beams=17", {"content": encoded()}, "num_beams: at most 16"),
        ("/caption?num_beams=x", {"content": encoded()}, "num_beams: 'x' is not a number"),
        ("/caption?nun_beams=1", {"content": encoded()}, "'nun_beams': unknown"),
        ("/vqa", {"content": encoded()}, "question: is missing"),
        ("/vqa?question=", {"content": encoded()}, "question is empty"),
        ("/vqa?question=a&question=b", {"content": encoded()}, "question: must be a string"),
        ("/match?text=a&top_k=3", {"content": encoded()}, "top_k: unknown"),
        ("/caption", {"json": {"image": "/etc/passwd"}}, "image: not base64"),
        ("/caption", {"json": {"image": "file:///etc/passwd"}}, "image: not base64"),
        ("/caption", {"json": {"image": "not base64!"}}, "image: not base64"),
        ("/caption", {"json": [1]}, "must be a JSON object"),
        ("/vqa", HALF_A_CHARACTER, "plain Unicode"),
    ],
)
def test_what_is_wrong_is_named(
    client: httpx.Client, path: str, request_: dict[str, Any], message: str
) -> None:
    response = client.post(path, **request_)
    assert response.status_code in (400, 415)
    assert message in response.json()["error"]["message"]


#: Halves of characters included.
ANY_TEXT = st.text(st.characters())
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        *("image", "prompt", "question", "text", "target", "model", "messages", "stream", "n"),
        *("stream_options", "temperature", "top_p", "max_tokens", "num_beams", "tools", "seed"),
    ]
)
PICTURES = st.just(data_url()) | st.text(max_size=30).map("data:image/png;base64,{}".format)
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "video"])},
    optional={"text": JSON_VALUES, "image_url": JSON_VALUES | PICTURES},
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system"])},
        optional={"content": JSON_VALUES | st.lists(PART | JSON_VALUES, max_size=3)},
    ),
    max_size=3,
)
OBJECTS = st.builds(
    lambda fields, more: {**fields, **more},
    st.dictionaries(FIELDS, JSON_VALUES, max_size=5),
    st.fixed_dictionaries(
        {}, optional={"image": PICTURES, "model": st.just(MODEL), "messages": MESSAGES}
    ),
)
BODIES = st.one_of(
    st.binary(max_size=300),
    st.integers(0, len(encoded()) - 1).map(lambda at: encoded()[:at]),
    st.tuples(st.integers(0, len(encoded()) - 1), st.binary(min_size=1, max_size=4)).map(
        lambda cut: encoded()[: cut[0]] + cut[1] + encoded()[cut[0] + len(cut[1]) :]
    ),
    OBJECTS.map(lambda value: json.dumps(value).encode()),
    JSON_VALUES.map(lambda value: json.dumps(value).encode("utf-16")),
    st.integers(1, 20000).map(lambda depth: b"[" * depth),
    st.just(b'{"seed": ' + b"9" * 5000 + b"}"),
)
PATHS = st.sampled_from([*PLAIN, "/v1/chat/completions", "/v1/models", "/", "/page.js"]) | st.text(
    "abc/.%0fé?\x00", max_size=8
).map("/{}".format)
KINDS = st.sampled_from(["application/json", "image/png", "multipart/form-data", "a;b", ""])
QUERIES = st.dictionaries(FIELDS, st.text(max_size=9), max_size=3)
METHODS = st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "HEAD", "OPTIONS"])


def ask_anything(client: httpx.Client, count: int) -> None:
    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(METHODS, PATHS, QUERIES, KINDS, BODIES)
    def check(method: str, path: str, query: dict[str, str], kind: str, body: bytes) -> None:
        url = f"{quote(path, safe='/?')}?{urlencode(query)}"
        headers = {"content-type": kind}
        response = client.request(method, url, headers=headers, content=body)
        assert response.status_code in (200, 400, 404, 405, 413, 415), (response.status_code, path)
        if response.status_code >= 400 and method != "HEAD":
            assert response.json()["error"]["message"]

    check()


def test_hundreds_of_malformed_requests_fail_none(client: httpx.Client) -> None:
    ask_anything(client, 200)
    assert client.post("/caption", content=encoded()).status_code == 200


def test_what_is_not_even_http_fails_none(server: Server, client: httpx.Client) -> None:
    for content in (
        b"\x00\xff\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: \xb2\r\n\r\n",
        b"POST /caption HTTP/1.1\r\nHost: a\xffb\r\nContent-Length: 0\r\n\r\n",
        b"POST /caption HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20000 + b"\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(content)
            answer = connection.recv(100)
            assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 404"), content[:60]
    assert client.get("/healthz").status_code == 200


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_malformed_requests_fail_none(client: httpx.Client) -> None:
    ask_anything(client, 10_000)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_memory_is_flat_over_ten_thousand_requests(server: Server, client: httpx.Client) -> None:
    def resident_mib() -> float:
        pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    def some(count: int) -> None:
        with ThreadPoolExecutor(16) as pool:
            for status in pool.map(
                lambda index: client.post("/caption", content=encoded(index % 8)).status_code,
                range(count),
            ):
                assert status == 200

    some(2_000)
    before = resident_mib()
    some(10_000)
    assert resident_mib() < before + 16, before


def test_streamed_words_are_never_taken_back(exported_artifacts: Path) -> None:
    """Whatever tokens come: what is said grows, and is the whole text in the end."""
    with Captioner.from_artifacts(exported_artifacts, target="onnx", threads=THREADS) as captioner:
        tokenizer = captioner.tokenizer

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.integers(0, captioner.manifest.text.vocabulary_size - 1), max_size=12))
    def check(ids: list[int]) -> None:
        spoken = Spoken(tokenizer)
        said = "".join(spoken.add(token) for token in ids)
        text = tokenizer.decode(ids)
        assert said + spoken.rest(text) == text

    check()
