"""Answers that are no result, in the shape that OpenAI's clients read."""

from __future__ import annotations

import json
import math
from typing import Any, Dict, Optional

from starlette.requests import Request
from starlette.responses import Response

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_SERVER_ERROR = 500


class Json(Response):
    """JSON in UTF-8; what is no Unicode, such as half a surrogate pair, is replaced."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """See ``Response``."""
        return json_bytes(content)


class RefusedError(Exception):
    """A request that gets no result: its status, and what to do about it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: Optional[str] = None,
        headers: Optional[Dict[str, str]] = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.headers = headers

    @property
    def body(self) -> Dict[str, Any]:
        """The error as OpenAI's API writes it."""
        default = "server_error" if self.status >= _SERVER_ERROR else "invalid_request_error"
        kind = _KINDS.get(self.status, default)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.status}
        return {"error": error}

    @property
    def response(self) -> Json:
        """The whole answer."""
        return Json(self.body, status_code=self.status, headers=self.headers)


def json_bytes(content: Any) -> bytes:
    """JSON on one line; what is not finite, which JSON does not have, is null."""
    text = json.dumps(_finite(content), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


async def refused(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's
    """Starlette's handler of a ``RefusedError``, and of its own ``HTTPException``."""
    if isinstance(error, RefusedError):
        return error.response
    status = getattr(error, "status_code", _SERVER_ERROR)
    detail = getattr(error, "detail", "unexpected")
    headers = getattr(error, "headers", None)
    return RefusedError(
        status, f"{detail}; /openapi.json lists what there is", headers=headers
    ).response
