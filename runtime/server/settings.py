"""What a server may be told: where it listens, who may ask, and how much a request may cost."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import FrozenSet, Optional

from ..errors import InputError

TOKEN_VARIABLE = "BLIP_EDGE_TOKEN"  # noqa: S105 - a name, not a secret
_SHORTEST_TOKEN = 16
#: Base64 and JSON need this much more than the picture that they carry.
_ENCODED = 1.4
_TEXT_BYTES = 256 << 10


@dataclass(frozen=True)
class ServerSettings:
    """The settings of one server, checked."""

    host: str = "127.0.0.1"
    port: int = 8000
    #: what ``Authorization: Bearer`` must say; None: anyone on this machine may ask
    token: Optional[str] = None
    #: names, besides IP addresses and localhost, that a Host header may hold
    names: FrozenSet[str] = frozenset()
    #: requests that are read, wait or are worked on; more are answered 503
    queue: int = 64
    maximum_bytes: int = 20 << 20
    timeout_s: float = 60.0
    #: how long a batch waits for pictures that are being decoded
    batch_wait_s: float = 0.005

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port {self.port}: must be between 0 and 65535")
        for flag, value in (
            ("--queue", self.queue),
            ("--max-bytes", self.maximum_bytes),
            ("--timeout", self.timeout_s),
        ):
            if not value > 0:
                raise InputError(f"{flag} {value}: must be above 0")
        if not 0 <= self.batch_wait_s <= 1:
            raise InputError(f"--batch-wait {self.batch_wait_s}: must be between 0 and 1 second")
        if self.token is None and not is_loopback(self.host):
            raise InputError(
                f"--host {self.host}: others can reach it, so it needs a token; set "
                f"{TOKEN_VARIABLE} or give --token-file"
            )

    @property
    def maximum_body(self) -> int:
        """Most bytes of a request's body."""
        return int(self.maximum_bytes * _ENCODED) + _TEXT_BYTES


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Optional[Path]) -> Optional[str]:
    """The token of a file, or of the environment; None if neither is given.

    Raises:
        InputError: it cannot be read, is too short, or cannot stand in a header.
    """
    where, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE)
    if path is not None:
        where = f"--token-file {path}"
        try:
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise InputError(f"{where}: cannot be read ({error})") from None
    if token is None:
        return None
    if not re.fullmatch(r"[!-~]{%d,}" % _SHORTEST_TOKEN, token):
        raise InputError(
            f"{where}: a token has at least {_SHORTEST_TOKEN} printable ASCII characters and no "
            "space; make one with: openssl rand -hex 24"
        )
    return token
