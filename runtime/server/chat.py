"""``/v1/chat/completions`` and ``/v1/models``, as OpenAI's clients use them.

A picture without words is captioned; words are a question about it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass
from typing import Any, AsyncIterator, Dict, List, Optional, Tuple

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ..preprocessing.processor import TextTokenizer
from ..tasks.generating import Generated
from .answering import Desk, Taken
from .bodies import Asked, bad, checked_options, read_data_url, read_object
from .refusals import Json, RefusedError, json_bytes

#: Arguments that would change an answer, and that nothing here can follow; each with its default.
_UNSUPPORTED: Dict[str, Tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "top_logprobs": (None, 0),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "stop": (None, []),
    "tools": (None, []),
}
#: What stands for minus infinity, as in OpenAI's answers.
_LEAST_LOGPROB = -9999.0
_ENDS = {"end": "stop", "length": "length", "cache": "length"}


@dataclass(frozen=True)
class ChatRequest:
    """A chat as this server understands it."""

    asked: Asked
    model: str
    stream: bool
    include_usage: bool
    log_probs: bool


def read_chat(body: bytes, models: Dict[str, str]) -> ChatRequest:
    """A chat request: the last picture and the words of the last message count.

    Args:
        body: the request's body.
        models: names of models, and the target of each.

    Raises:
        RefusedError: a request that cannot be used.
        InputError: an impossible argument.
    """
    given = read_object(body)
    model = given.get("model")
    if not isinstance(model, str) or model not in models:
        message = f"model {str(model)[:80]!r}: this server has {', '.join(models)}"
        raise RefusedError(404, message, param="model")
    for name, defaults in _UNSUPPORTED.items():
        if given.get(name) not in defaults:
            raise bad(name, "this server cannot do that; leave it out")
    stream = given.get("stream") or False
    stream_options = given.get("stream_options") or {}
    if not isinstance(stream, bool) or not isinstance(stream_options, dict):
        raise bad("stream", "must be true or false, and stream_options an object")
    image, question = _read_messages(given.get("messages"))
    task = "vqa" if question else "caption"
    asked = Asked(task, image, (question,), models[model], _options(given))
    include_usage = stream_options.get("include_usage") is True
    return ChatRequest(asked, model, stream, include_usage, _log_probs(given, stream))


def _log_probs(given: Dict[str, Any], stream: bool) -> bool:
    wanted = given.get("logprobs") or False
    if not isinstance(wanted, bool) or (wanted and stream):
        raise bad("logprobs", "must be true or false, and false in streams")
    return wanted


def _read_messages(messages: Any) -> Tuple[bytes, Optional[str]]:
    if not isinstance(messages, list):
        raise bad("messages", "must be a list")
    url: Any = None
    words: List[str] = []
    for message in messages:
        if not isinstance(message, dict):
            raise bad("messages", "each must be an object")
        if message.get("role") != "user":
            continue
        content, words = message.get("content"), []
        for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
            if not isinstance(part, dict):
                raise bad("messages", "each part of content must be an object")
            if part.get("type") == "text" and isinstance(part.get("text"), str):
                words.append(part["text"])
            elif part.get("type") == "image_url":
                link = part.get("image_url")
                url = link.get("url") if isinstance(link, dict) else link
            else:
                raise bad("messages", "content has parts of type text and image_url only")
    if url is None:
        raise bad("messages", "no picture; add a part of type image_url with a data URL")
    return read_data_url("image_url", url), " ".join(words).strip() or None


def _options(given: Dict[str, Any]) -> Dict[str, Any]:
    """Arguments of generation: greedy unless a temperature above 0 or a ``top_p`` is given."""
    limit = given.get("max_completion_tokens")
    options: Dict[str, Any] = {
        "max_new_tokens": given.get("max_tokens") if limit is None else limit,
        "num_return_sequences": given.get("n"),
        "output_scores": given.get("logprobs") or None,
    }
    if given.get("temperature") or given.get("top_p") not in (None, 1):
        names = ("top_p", "seed", "temperature")
        options.update({name: given.get(name) for name in names}, do_sample=True, top_k=0)
    return checked_options(options)


class Chat:
    """The endpoints."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._created = int(time.time())

    async def models(self, request: Request) -> Response:
        """Lists the models, or describes the one that is named."""
        listed = [
            {"id": name, "object": "model", "created": self._created, "owned_by": "blip-edge"}
            for name in self._desk.models.ids
        ]
        wanted = request.path_params.get("model")
        if wanted is None:
            return Json({"object": "list", "data": listed})
        for one in listed:
            if one["id"] == wanted:
                return Json(one)
        raise RefusedError(
            404, f"model {wanted[:80]!r}: unknown; /v1/models lists them", param="model"
        )

    async def completions(self, request: Request) -> Response:
        """Answers at once, or token by token."""
        return await self._desk.limited(request, self._completed(request))

    async def _completed(self, request: Request) -> Response:
        body = await request.body()
        chat = await asyncio.get_running_loop().run_in_executor(
            None, read_chat, body, self._desk.models.ids
        )
        frame = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": chat.model,
        }
        if chat.stream:
            return await self._streamed(chat, frame)
        taken = await self._desk.take(lambda: chat.asked)
        results = await self._desk.results(taken, request)
        best = results[0]
        assert isinstance(best, Generated)  # noqa: S101 - caption and vqa generate
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": one.text, "refusal": None},
                "logprobs": self._log_probs(taken, one) if chat.log_probs else None,
                "finish_reason": _ENDS[one.finished],
            }
            for index, one in enumerate((best, *best.alternatives))
        ]
        usage = self._usage(taken, [best, *best.alternatives])
        head = {**frame, "object": "chat.completion", "choices": choices, "usage": usage}
        return Json({**head, "blip_edge": _found(taken, best)})

    async def _streamed(self, chat: ChatRequest, frame: Dict[str, Any]) -> Response:
        if chat.asked.options.get("num_return_sequences", 1) > 1:
            raise bad("n", "streams hold one answer; leave out n or stream")
        loop = asyncio.get_running_loop()
        tokens: "asyncio.Queue[Optional[int]]" = asyncio.Queue()

        def put(token: Optional[int]) -> None:
            loop.call_soon_threadsafe(tokens.put_nowait, token)

        taken = await self._desk.take(lambda: chat.asked, put)
        taken.job.future.add_done_callback(lambda _: put(None))
        frame = {**frame, "object": "chat.completion.chunk"}
        return StreamingResponse(
            self._events(taken, chat, frame, tokens), media_type="text/event-stream"
        )

    async def _events(
        self,
        taken: Taken,
        chat: ChatRequest,
        frame: Dict[str, Any],
        tokens: "asyncio.Queue[Optional[int]]",
    ) -> AsyncIterator[bytes]:
        deadline = taken.begin + self._desk.timeout_s
        spoken = Spoken(taken.model.task.tokenizer)

        def chunk(delta: Dict[str, Any], end: Optional[str] = None, **more: Any) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}
            return _event({**frame, "choices": [choice], **more})

        try:
            yield chunk({"role": "assistant", "content": ""})
            spoken.ids += _prompt_ids(taken)
            while True:
                left = deadline - time.perf_counter()
                token = await asyncio.wait_for(tokens.get(), max(left, 0.001))
                if token is None:
                    break
                words = spoken.add(token)
                if words:
                    yield chunk({"content": words})
            best = (await asyncio.wrap_future(taken.job.future))[0]
            assert isinstance(best, Generated)  # noqa: S101 - caption and vqa generate
            rest = spoken.rest(best.text)
            if rest:
                yield chunk({"content": rest})
            yield chunk({}, _ENDS[best.finished], blip_edge=_found(taken, best))
            usage = self._usage(taken, [best])
            if chat.include_usage:
                yield _event({**frame, "choices": [], "usage": usage})
        except (GeneratorExit, asyncio.CancelledError):
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            yield _event(self._desk.refusal(error, "/v1/chat/completions").body)
        finally:
            taken.job.abandon()
        yield b"data: [DONE]\n\n"

    def _log_probs(self, taken: Taken, found: Generated) -> Dict[str, Any]:
        """Each new token with its log-probability, as OpenAI writes them."""
        tokens = found.token_ids[len(found.token_ids) - len(found.log_probs) :]
        content = []
        for token, value in zip(tokens, found.log_probs):
            text = taken.model.task.tokenizer.decode([token])
            logprob = max(value, _LEAST_LOGPROB)
            entry = {"token": text, "logprob": logprob, "bytes": list(text.encode())}
            content.append({**entry, "top_logprobs": []})
        return {"content": content, "refusal": None}

    def _usage(self, taken: Taken, found: List[Generated]) -> Dict[str, int]:
        """Tokens read, the picture's included, and written."""
        task, text = taken.model.task, taken.job.texts[0]
        start = len(_prompt_ids(taken))
        written = sum(len(one.token_ids) - start for one in found)
        asked = len(task.read_text(text).ids) if text else 0
        read = task.manifest.dimensions.image_tokens + asked
        self._desk.metrics.tokens.inc(written)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }


class Spoken:
    """Turns tokens into words as they come. What was said is never taken back.

    Words are held back while a following token can still change how they are written.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.ids: List[int] = []
        self._tokenizer = tokenizer
        self._said = ""

    def add(self, token: int) -> str:
        """What can be said after one more token."""
        self.ids.append(token)
        text = self._tokenizer.decode(self.ids)
        # "don" "'" "t" are written as one word: a mark's place is known when the next word is.
        settled = text if text[-1:].isalnum() else text.rstrip("".join(set(text) - _letters(text)))
        return self.rest(settled)

    def rest(self, text: str) -> str:
        """What of a text was not said yet; nothing where it does not go on from that."""
        if not text.startswith(self._said):
            return ""
        new = text[len(self._said) :]
        self._said = text
        return new


def _letters(text: str) -> "set[str]":
    return {letter for letter in text if letter.isalnum()}


def _prompt_ids(taken: Taken) -> List[int]:
    """The tokens that a generated sequence begins with."""
    return [taken.model.task.manifest.text.start_token_id]


def _found(taken: Taken, best: Generated) -> Dict[str, Any]:
    """What this server knows besides: the record's other fields, and the time."""
    known = ("score", "confidence")
    record = {name: value for name, value in best.record().items() if name in known}
    return {**record, **taken.extras()}


def _event(content: Dict[str, Any]) -> bytes:
    return b"data: " + json_bytes(content) + b"\n\n"
