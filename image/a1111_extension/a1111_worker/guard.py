"""Refuses requests of web pages, as the embedded engine does.

Any page that a browser on this machine shows can send requests to an address of this machine, also
by a name of its own that leads here (DNS rebinding). It could stop a job or read what was drawn.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

# Names that no public DNS server resolves, so that no web site can point them at this machine.
PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
FORBIDDEN = 403

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """ASGI middleware.

    Args:
        app: the engine's application.
        host: the name that the engine listens on; it may be a public one.
    """

    def __init__(self, app: App, host: str) -> None:
        self._app = app
        self._host = host.lower()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 403 in A1111's form."""
        is_request = scope["type"] == "http"
        reason = why_refused(dict(scope["headers"]), self._host) if is_request else ""
        if not reason:
            await self._app(scope, receive, send)
            return
        body = json.dumps({"error": "HTTPException", "detail": reason, "body": "", "errors": ""})
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": FORBIDDEN, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})


def why_refused(headers: MutableMapping[bytes, bytes], own: str) -> str:
    """Why a request with these headers may be from a web page; "" if it is not."""
    host = headers.get(b"host", b"").decode("latin-1").lower()
    name = _name(f"//{host}")
    if not (name == own or _is_private(name)):
        return "The header Host names another machine."
    origin = headers.get(b"origin", b"").decode("latin-1").lower()
    if origin and origin.partition("//")[2] != host:
        return "Web pages may not use the engine."
    if headers.get(b"sec-fetch-site", b"none") not in {b"none", b"same-origin"}:
        return "Web pages may not use the engine."
    return ""


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_private(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return bool(host) and ("." not in host or host.endswith(PRIVATE_SUFFIXES))
    return True
