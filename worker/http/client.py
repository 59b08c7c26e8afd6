"""Every request that leaves this machine goes through here.

A URL may come from a job, so nobody vouches for it: https only, public addresses only (checked
on the connection itself), redirects are followed by hand and counted, and each hop is checked
anew. A token is sent to its own host and nowhere else. Signed URLs are secrets like tokens: no
message and no log line holds a query.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
import ssl
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urljoin

import certifi
import urllib3
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import Url, parse_url

from worker.errors import FetchStopped, ModelHostFailed, ModelUrlRefused
from worker.http.backoff import backoff, retry_after

USER_AGENT = "a1111-worker/0.1"  # with a browser's, CivitAI answers errors with HTML and 200
MAX_REDIRECTS = 5
MAX_DOCUMENT = 8 << 20  # bytes of metadata; CivitAI's longest answers have some 100 KB
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 30.0
ATTEMPTS = 4

_HAS_IT = {200, 206}
_REDIRECTS = {301, 302, 303, 307, 308}
BUSY = {408, 425, 429, 500, 502, 503, 504}
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # no other IPv6 address is on the internet
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # holds an IPv4 address in its last 32 bits
NO_CANCEL = threading.Event()  # for callers that nothing stops

# Below these levels they write whole URLs, and signed ones are secrets.
logging.getLogger("urllib3.connectionpool").setLevel(logging.WARNING)
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet; an embedded IPv4 address counts too."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if inner and not is_public(str(inner)):
            return False
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast


class _PublicConnection(HTTPSConnection):
    """Connects to public addresses only."""

    def _new_conn(self) -> socket.socket:
        # Before: a private host must not even learn of us. After: the name may have changed its
        # address in between (DNS rebinding).
        try:
            found = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise urllib3.exceptions.NameResolutionError(self.host, self, error) from error  # type: ignore[arg-type]
        for *_, address in found:
            self._check(str(address[0]))
        connected = super()._new_conn()
        try:
            self._check(str(connected.getpeername()[0]))
        except ModelUrlRefused:
            connected.close()
            raise
        return connected

    def _check(self, address: str) -> None:
        if not is_public(address):
            raise ModelUrlRefused(f"the host {self.host!r} has no public address.", host=self.host)


class _PublicPool(HTTPSConnectionPool):
    ConnectionCls = _PublicConnection


def _certificates() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # a slim image may have none of its own
    return context


def _pools(context: ssl.SSLContext, **classes: type[HTTPConnectionPool]) -> urllib3.PoolManager:
    manager = urllib3.PoolManager(
        num_pools=32,
        maxsize=64,
        retries=False,
        timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
        ssl_context=context,
    )
    manager.pool_classes_by_scheme = {**manager.pool_classes_by_scheme, **classes}
    return manager


def _parsed(url: str) -> Url:
    r"""As urllib3 reads it, which connects; of `https://a\@b/` other parsers say the host is b."""
    try:
        return parse_url(url)
    except urllib3.exceptions.LocationParseError:
        raise ModelUrlRefused("it is no URL.") from None


def shown(url: str) -> str:
    """The URL as people and logs may see it: without query, fragment and credentials."""
    return f"{origin(url)}{_parsed(url).path or ''}"


def origin(url: str) -> str:
    """`https://host[:port]`, lower case: what a token belongs to.

    Raises:
        ModelUrlRefused: it is no URL.
    """
    parsed = _parsed(url)
    return f"{parsed.scheme or ''}://{parsed.netloc or ''}".lower()


@dataclass(frozen=True)
class Document:
    """A whole answer: metadata or an error's text."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 - JSON
        """The body, parsed; None if it is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class Reply:
    """An answer whose body has not been read yet; a context manager that ends the connection.

    Attributes:
        url: where it came from in the end; a secret, if it is signed.
        hops: redirects that were followed.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str, hops: int) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.headers
        self.url = url
        self.hops = hops
        self._broken_off = False

    def __enter__(self) -> Reply:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def read(self, amount: int) -> bytes:
        """Up to that many bytes, fewer only at the end.

        Raises:
            ModelHostFailed: the connection broke or stalled.
        """
        try:
            block = self._response.read(amount, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            # The last one: a TLS socket that is shut down while it is read.
            raise _failed(self.url, error) from error
        if self._broken_off:
            # A TLS socket that was shut down gives the bytes still encrypted.
            raise _failed(self.url, ConnectionAbortedError())
        return block

    def document(self) -> Document:
        """Read all of it, up to MAX_DOCUMENT bytes."""
        body = b""
        # Not in one: only the read after a premature end fails.
        while block := self.read(MAX_DOCUMENT - len(body)):
            body += block
        return Document(self.status, self.headers, body)

    def shutdown(self) -> None:
        """Break it off, from any thread: the thread that reads gets an error."""
        self._broken_off = True
        with suppress(OSError, ValueError, RuntimeError):  # it has ended meanwhile
            self._response.shutdown()

    def close(self) -> None:
        """A connection whose answer was read to its end is kept for the next request."""
        self._response.close()


class SafeHttpClient:
    """A client for the hosts of models. Thread-safe.

    Args:
        trusted_hosts: `host[:port]` that the operator exempts from https and public addresses.
        tokens: origin (`https://civitai.com`) -> bearer token.
    """

    def __init__(
        self, trusted_hosts: Collection[str] = (), tokens: Mapping[str, str] | None = None
    ) -> None:
        self._trusted = {host.lower() for host in trusted_hosts}
        self._tokens = dict(tokens or {})
        context = _certificates()
        self._public_pools = _pools(context, https=_PublicPool)
        self._trusted_pools = _pools(context)

    def has_token(self, url: str) -> bool:
        """Whether requests to the URL's host carry a token."""
        return origin(url) in self._tokens

    def open(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        same_host: bool = False,
    ) -> Reply:
        """Send a request and follow redirects; whatever the status, the answer is returned.

        With `same_host`, a redirect to another host is an answer too.

        Raises:
            ModelUrlRefused: the URL, or one it redirects to, breaks the rules above.
            ModelHostFailed: no answer; another try may help.
        """
        for hops in range(MAX_REDIRECTS + 1):
            response = self._send(method, url, dict(headers or {}))
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or not target:
                return Reply(response, url, hops)
            target = _joined(url, target)
            if same_host and origin(target) != origin(url):
                return Reply(response, url, hops)
            response.close()
            url = target
        raise ModelUrlRefused(f"{origin(url)} redirects more than {MAX_REDIRECTS} times.")

    def ask(
        self,
        url: str,
        *,
        method: str = "GET",
        same_host: bool = False,
        stop: threading.Event = NO_CANCEL,
    ) -> tuple[Document, str]:
        """A small answer and the URL it came from; a busy host is asked again, with patience.

        Raises:
            ModelUrlRefused, ModelHostFailed: as `open`.
            FetchStopped: `stop` was set.
        """
        for attempt in range(ATTEMPTS):
            last = attempt == ATTEMPTS - 1
            try:
                with self.open(url, method=method, same_host=same_host) as reply:
                    document = reply.document()
                if last or not _is_busy(document):
                    return document, reply.url
                asked_for = retry_after(document.headers)
            except ModelHostFailed:
                if last:
                    raise
                asked_for = None
            if stop.wait(backoff(attempt, asked_for)):
                raise FetchStopped("the download was stopped.")
        raise AssertionError("the last attempt returns or raises")

    def check(self, url: str) -> None:
        """Whether the URL is one to which a request would be sent; its host is not looked up.

        Raises:
            ModelUrlRefused: it is no URL, or not https and its host not trusted.
        """
        self._pools_for(url)

    def put(self, url: str, data: bytes, content_type: str) -> Document:
        """Send a file, once; a redirect is an answer, because the URL was signed for one host.

        Raises:
            ModelUrlRefused: the URL breaks the rules above.
            ModelHostFailed: no answer; another try may help.
        """
        with Reply(self._send("PUT", url, {"Content-Type": content_type}, data), url, 0) as reply:
            return reply.document()

    def etag(self, url: str) -> str | None:
        """The mark of the version that the host has now; None if it gives none or no answer."""
        try:
            with self.open(url, headers={"Range": "bytes=0-0"}) as reply:
                return strong(reply.headers.get("ETag")) if reply.status in _HAS_IT else None
        except ModelHostFailed:
            return None

    def _send(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None = None
    ) -> urllib3.BaseHTTPResponse:
        pools = self._pools_for(url)
        headers |= {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        if token := self._tokens.get(origin(url)):
            headers["Authorization"] = f"Bearer {token}"
        try:
            return pools.request(
                method, url, body=body, headers=headers, redirect=False, preload_content=False
            )
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise _failed(url, error) from error

    def _pools_for(self, url: str) -> urllib3.PoolManager:
        parsed = _parsed(url)
        if parsed.netloc in self._trusted:
            if parsed.scheme in {"http", "https"}:
                return self._trusted_pools
        elif parsed.scheme == "https" and parsed.host:
            return self._public_pools
        raise ModelUrlRefused(f"{shown(url)} is not an https URL.", host=parsed.host)


def _joined(url: str, target: str) -> str:
    try:
        return urljoin(url, target)
    except ValueError:
        raise ModelUrlRefused(f"{origin(url)} redirects to what is no URL.") from None


def _failed(url: str, error: Exception) -> ModelHostFailed:
    host = _parsed(url).host
    return ModelHostFailed(f"{host}: the connection failed ({type(error).__name__}).", host=host)


def _is_busy(document: Document) -> bool:
    challenged = document.status == 403 and b"Just a moment" in document.body  # noqa: PLR2004
    return document.status in BUSY or challenged


def strong(etag: str | None) -> str | None:
    """The ETag, if two files with it have the same bytes."""
    return etag if etag and not etag.startswith("W/") else None
