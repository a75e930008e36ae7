"""Reads what clients send. Nothing of it is taken for a path or an address."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, fields
from typing import Any, Dict, List, NoReturn, Optional, Tuple

from starlette.datastructures import QueryParams

from ..generation.settings import GenerationSettings
from .refusals import RefusedError

#: More digits than any argument has; longer numbers take long to read.
_MOST_DIGITS = 20
#: Sequences of one search: each takes as much memory as a request of its own.
_MOST_SEQUENCES = 16
_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w.+=-]+)*;base64,", re.IGNORECASE)
#: Longest head of a data URL that is looked at.
_HEAD = 200
_GENERATION = {item.name: item.default for item in fields(GenerationSettings)}
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Asked:
    """One picture, texts about it, and how to answer."""

    task: str
    image: bytes
    texts: Tuple[Optional[str], ...]
    target: Optional[str]
    options: Dict[str, Any]


def bad(name: str, why: str) -> RefusedError:
    """A value that cannot be used."""
    return RefusedError(400, f"{name}: {why}", param=name)


def read_asked(task: str, asks: str, content_type: str, body: bytes, query: QueryParams) -> Asked:
    """A request of ``/caption``, ``/vqa`` or ``/match``.

    Args:
        task: the task.
        asks: the field of its text: ``prompt``, ``question`` or ``text``.
        content_type: of the body: JSON, or else the picture itself.
        body: the body.
        query: what the address says, where the body is a picture.

    Raises:
        RefusedError: a request that cannot be used.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        raise RefusedError(415, "body: send the picture itself (curl --data-binary @FILE), or JSON")
    if kind == "application/json":
        given = read_object(body)
        image = _encoded("image", given.pop("image", None))
    else:
        given, image = _queried(query, asks), body
    if not image:
        raise bad("image", "is empty; send a picture (curl --data-binary @FILE)")
    text = given.pop(asks, None)
    texts = text if isinstance(text, list) and task == "itm" else [text]
    target = given.pop("target", None)
    if task == "itm" and given:
        raise bad(min(given), "unknown; /openapi.json lists what there is")
    for value in (*texts, target):
        if not (value is None or isinstance(value, str)):
            raise bad(asks, "must be a string")
    if not texts or (task != "caption" and None in texts):
        raise bad(asks, "is missing")
    return Asked(task, image, tuple(texts), target, checked_options(given))


def checked_options(given: Dict[str, Any]) -> Dict[str, Any]:
    """Arguments of generation, checked, without those that are null.

    Raises:
        InputError: an unknown name or an impossible value.
        RefusedError: too many sequences.
    """
    options = {name: value for name, value in given.items() if value is not None}
    settings = GenerationSettings.from_arguments(**options)
    for name in ("num_beams", "num_return_sequences"):
        if getattr(settings, name) > _MOST_SEQUENCES:
            raise bad(name, f"at most {_MOST_SEQUENCES} here")
    return options


def read_object(body: bytes) -> Dict[str, Any]:
    """The JSON object of a body.

    Raises:
        RefusedError: it holds none.
    """
    try:
        found = json.loads(body, parse_int=_whole, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"body: not JSON ({str(error)[:120]})") from None
    if not isinstance(found, dict):
        raise RefusedError(400, "body: must be a JSON object")
    return found


def read_data_url(name: str, url: Any) -> bytes:
    """The bytes of a data URL; every other URL is refused.

    Raises:
        RefusedError: it is none.
    """
    head = _DATA_URL.match(url[:_HEAD]) if isinstance(url, str) else None
    if head is None:
        message = "send the picture in a data URL, data:image/jpeg;base64,...; no URL is opened"
        raise bad(name, message)
    return _decoded(name, url[head.end() :])


def _encoded(name: str, text: Any) -> bytes:
    if not isinstance(text, str):
        raise bad(name, "send the picture as a base64 string")
    return read_data_url(name, text) if text[:5].lower() == "data:" else _decoded(name, text)


def _decoded(name: str, text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error):
        raise bad(name, "not base64") from None


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError("a number of too many digits")
    return int(digits)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _queried(query: QueryParams, asks: str) -> Dict[str, Any]:
    """What an address says, with the types that JSON would have."""
    found: Dict[str, Any] = {}
    for name, text in query.multi_items():
        if name == asks:
            found.setdefault(name, []).append(text)
        elif name in found:
            raise bad(name, "given twice")
        else:
            found[name] = _typed(name, text)
    texts: List[str] = found.get(asks, [])
    if len(texts) == 1:
        found[asks] = texts[0]
    return found


def _typed(name: str, text: str) -> Any:
    if name not in _GENERATION:
        return text
    default = _GENERATION[name]
    try:
        if isinstance(default, bool):
            return "never" if text == "never" else _TRUTHS[text.lower()]
        return float(text) if isinstance(default, float) else _whole(text)
    except (KeyError, ValueError):
        kind = "true or false" if isinstance(default, bool) else "a number"
        raise bad(name, f"{text[:40]!r} is not {kind}") from None
