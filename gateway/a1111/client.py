"""Which client sends a request. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from starlette.requests import Request

_NOT_SHOWN = re.compile(r"[^ -~]")


class Client(NamedTuple):
    """A program on a computer: the finest distinction that clients of A1111 allow.

    Attributes:
        address: of the computer.
        program: its User-Agent.
    """

    address: str
    program: str


def client_of(request: Request) -> Client:
    """The client that sends this request."""
    address = request.client.host if request.client else ""
    program = request.headers.get("user-agent", "")[:80]
    return Client(address, _NOT_SHOWN.sub("?", program) or "a client without a name")
