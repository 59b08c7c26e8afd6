"""Refuses requests that must not reach a job: from web pages of other origins, by DNS rebinding,
too large, or without the login.

Pure ASGI: Starlette's `BaseHTTPMiddleware` would hide that a client hangs up.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MB = 1_000_000

# Names that no public DNS server resolves, so that no web site can point them at this machine.
_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")


@dataclass(frozen=True)
class Access:
    """Who may use the gateway.

    Attributes:
        hosts: further host names under which it is reached.
        any_host: another server decides which requests arrive, as on RunPod.
        origins: further origins whose web pages may send jobs.
        body_limit: bytes of a request, at most.
    """

    hosts: Collection[str] = ()
    any_host: bool = False
    origins: Collection[str] = ()
    body_limit: int = 30 * MB


class Refused(Exception):
    """The request is refused with this HTTP status and sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """ASGI middleware around the app."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the request's head, then count its body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_origin(headers)
            self._check_length(headers)
        except Refused as refusal:
            answer = JSONResponse({"detail": str(refusal), "errors": str(refusal)}, refusal.status)
            await answer(scope, receive, send)
            return
        await self._app(scope, self._counted(receive), send)

    def _check_host(self, headers: Headers) -> None:
        """A web site could point its own name at this machine (DNS rebinding)."""
        host = _host_name(headers.get("host", ""))
        if self._access.any_host or is_private_name(host) or host in self._access.hosts:
            return
        raise Refused(
            421, f"This server does not answer as {host[:80]!r}: add the name to GATEWAY_HOSTS."
        )

    def _check_origin(self, headers: Headers) -> None:
        """A browser sends Origin with each request by which a page could start a job."""
        origin = headers.get("origin")
        if origin is None:
            if headers.get("sec-fetch-site") not in {None, "same-origin", "none"}:
                raise Refused(403, "Web pages of other sites may not use this server.")
            return
        if urlsplit(origin).netloc == headers.get("host") or origin in self._access.origins:
            return
        raise Refused(
            403, f"Pages of {origin[:80]!r} may not use this server: see GATEWAY_ORIGINS."
        )

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()) or len(length) > 12:  # noqa: PLR2004
            raise Refused(400, "The header Content-Length is not a number.")
        if int(length) > self._access.body_limit:
            raise Refused(413, f"The request is {self._too_large(int(length))}.")

    def _counted(self, receive: Receive) -> Receive:
        """The same, but it ends with an error where the body is too large."""
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._access.body_limit:
                raise Refused(413, f"The request is {self._too_large(total)}.")
            return message

        return counted

    def _too_large(self, size: int) -> str:
        return (
            f"{size / MB:.1f} MB, and at most {self._access.body_limit / MB:.0f} MB are allowed:"
            " send pictures by URL"
        )


def is_private_name(host: str) -> bool:
    """Whether no public DNS name is meant: an address, `localhost`, a name without a dot."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return bool(host) and ("." not in host or host.endswith(_PRIVATE_SUFFIXES))
    return True


def _host_name(header: str) -> str:
    """The name in a Host header, without port and brackets; empty if it is none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
