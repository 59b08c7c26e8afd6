"""Checks the head of a request: host, origin, lengths. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

MB = 1_000_000

# Names that no public DNS server resolves, so that no web site can point them at this machine.
_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_METHODS = ("GET", "HEAD", "POST", "OPTIONS")
# Two of these could mean one thing to a proxy and another to this server.
_SINGLE = (
    *("host", "origin", "authorization", "content-type", "content-length", "transfer-encoding"),
    *("sec-fetch-site", "sec-fetch-mode"),
)


@dataclass(frozen=True)
class Access:
    """Who may use the gateway, and with what.

    Attributes:
        hosts: further host names under which it is reached.
        any_host: another server decides which requests arrive, as on RunPod.
        origins: further origins whose web pages may use it, such as http://localhost:5173.
        token: what a client may send as Bearer, or as the password of Basic.
        login: `user:password` that a client may send as Basic.
        body_limit: bytes of a request, at most.
        body_seconds: seconds in which a request's body must have arrived.
    """

    hosts: Collection[str] = ()
    any_host: bool = False
    origins: Collection[str] = ()
    token: str = field(default="", repr=False)
    login: str = field(default="", repr=False)
    body_limit: int = 30 * MB
    body_seconds: float = 60
    headers_limit: int = 100
    headers_bytes: int = 32_000
    url_limit: int = 8000

    @property
    def needs_login(self) -> bool:
        """Whether a token or a login is set."""
        return bool(self.token or self.login)

    def too_large(self, size: int) -> Refused:
        """The answer to a request of this many bytes."""
        return Refused(
            413,
            f"The request is {size / MB:.1f} MB, and at most {self.body_limit / MB:.0f} MB are"
            " allowed: send pictures by URL.",
        )


class Refused(Exception):
    """The request is refused with this HTTP status, sentence and headers."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


def check_head(scope: Scope, access: Access) -> None:
    """Check all but the login.

    Raises:
        Refused: the request must not reach a route.
    """
    headers = Headers(scope=scope)
    _check_form(scope, headers, access)
    if not access.any_host:
        _check_host(headers, access)
        _check_origin(scope, headers, access)
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal()) or len(length) > 12:  # noqa: PLR2004
        raise Refused(400, "The header Content-Length is not a number.")
    if int(length) > access.body_limit:
        raise access.too_large(int(length))


def is_preflight(scope: Scope, access: Access) -> bool:
    """Whether a browser asks if a page of an allowed origin may send a request; without a login."""
    headers = Headers(scope=scope)
    is_question = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
    return is_question and headers.get("origin") in access.origins


def is_private_name(host: str) -> bool:
    """Whether no public DNS name is meant: an address, `localhost`, a name without a dot."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return bool(host) and ("." not in host or host.endswith(_PRIVATE_SUFFIXES))
    return True


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a server that listens there."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check_form(scope: Scope, headers: Headers, access: Access) -> None:
    if scope["method"] not in _METHODS:
        allowed = ", ".join(_METHODS)
        raise Refused(405, f"Only {allowed} are allowed.", {"Allow": allowed})
    target: bytes = scope.get("raw_path") or scope["path"].encode()
    if len(target) + len(scope["query_string"]) > access.url_limit:
        raise Refused(414, f"The URL has more than {access.url_limit} characters.")
    if not target.startswith(b"/"):
        raise Refused(400, "The path does not begin with a slash: this server is no proxy.")
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if len(scope["headers"]) > access.headers_limit or size > access.headers_bytes:
        raise Refused(431, "The request has too many headers, or too long ones.")
    counted = Counter(headers.keys())
    if twice := [name for name in _SINGLE if counted[name] > 1]:
        raise Refused(400, f"The request has the header {twice[0]} twice.")
    if counted["content-length"] and counted["transfer-encoding"]:
        raise Refused(400, "The request has Content-Length and Transfer-Encoding: send one.")


def _check_host(headers: Headers, access: Access) -> None:
    """A web site could point its own name at this machine (DNS rebinding)."""
    found = _HOST.fullmatch(headers.get("host", ""))
    if not found:
        raise Refused(400, "The header Host is missing, or names no host.")
    name = found["name"].strip("[]").lower().rstrip(".")
    if not is_private_name(name) and name not in access.hosts:
        raise Refused(
            421,
            f"This server does not answer as {name[:80]!r}: if this is your own name for it, add it"
            " to GATEWAY_HOSTS.",
        )


def _check_origin(scope: Scope, headers: Headers, access: Access) -> None:
    """A browser sends Origin with each request by which a page could start a job."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None:
        if origin in access.origins or _is_own(origin, headers):
            return
        raise Refused(
            403,
            f"Web pages of {origin[:80]!r} may not use this server: if you trust them, add the"
            " origin to GATEWAY_ORIGINS.",
        )
    is_own = site in {"same-origin", "none"} or (
        site is None and _is_own(headers.get("referer"), headers)
    )
    if not (is_own or _opens_the_page(scope, headers)):
        raise Refused(403, "Web pages of other sites may not use this server.")


def _is_own(url: str | None, headers: Headers) -> bool:
    """Whether the URL is of this server, or there is none."""
    try:
        return url is None or urlsplit(url).netloc.lower() == headers.get("host", "").lower()
    except ValueError:
        return False


def _opens_the_page(scope: Scope, headers: Headers) -> bool:
    """Whether somebody follows a link to the page: that starts no job."""
    is_link = headers.get("sec-fetch-mode", "navigate") == "navigate"
    is_whole = headers.get("sec-fetch-dest", "document") == "document"
    return scope["method"] in {"GET", "HEAD"} and scope["path"] == "/" and is_link and is_whole
