"""Which client sends a request. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from starlette.requests import Request

_NOT_SHOWN = re.compile(r"[^ -~]")


class Client(NamedTuple):
    """A program on a computer: the finest distinction that clients of A1111 allow.

    Attributes:
        address: of the computer, and those that a proxy has written before it.
        program: its User-Agent.
    """

    address: str
    program: str


def _without_port(address: str) -> str:
    """`203.0.113.7:41000` without the port, which is another one for each connection."""
    host, colon, port = address.strip().rpartition(":")
    return host if colon and port.isdecimal() and ":" not in host else address.strip()


def client_of(request: Request) -> Client:
    """The client that sends this request."""
    # Behind a proxy, such as RunPod's balancer, all clients have its address. What a client writes
    # into the header itself separates it from others, and gives it nothing of theirs.
    hosts = [request.client.host if request.client else ""]
    hosts += map(_without_port, request.headers.get("x-forwarded-for", "")[:200].split(","))
    address = " ".join(filter(None, hosts))
    program = request.headers.get("user-agent", "")[:80]
    return Client(address, _NOT_SHOWN.sub("?", program) or "a client without a name")
