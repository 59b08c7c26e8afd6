"""Sends every request that leaves this machine.

A URL may come from a job, so it is not trusted: https only, public addresses only (checked on
the connection itself), redirects are followed by hand and counted, and each hop is checked anew.
A token is sent to its own host and to no other. Signed URLs are secrets like tokens: no message
and no log line contains a query.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import certifi
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from worker.errors import FetchStopped, ModelHostFailed, ModelUrlRefused
from worker.http.backoff import LONGEST_WAIT, Backoff, retry_after
from worker.http.document import Document, strong
from worker.http.interrupt import watch, within
from worker.http.urls import is_public, is_public_host, joined, origin, parsed, shown

USER_AGENT = "a1111-worker/0.1"  # CivitAI answers a browser's with HTML and 200 instead of an error
# 520 to 527 and 530 are Cloudflare's: it did not reach the host behind it.
BUSY = {408, 425, 429, 500, 502, 503, 504, *range(520, 528), 530}
NO_CANCEL = threading.Event()  # for requests that are never cancelled

_HAS_FILE = {200, 206}
_REDIRECTS = {301, 302, 303, 307, 308}

# Below these levels urllib3 logs whole URLs, and signed URLs are secrets.
logging.getLogger("urllib3.connectionpool").setLevel(logging.WARNING)
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)


@dataclass(frozen=True)
class HttpLimits:
    """Limits on the requests to a host.

    Attributes:
        max_document: bytes of metadata; CivitAI's longest answers have some 100 KB.
        connect_timeout, read_timeout: seconds.
        document_seconds: for one attempt of `ask`, from the first redirect to the last byte: a host
            can send one byte from time to time.
        attempts: of `SafeHttpClient.ask`.
        first_pause: seconds before the second attempt; then 1, 2, ...
        longest_wait: seconds that a host can ask for before the next attempt.
    """

    max_redirects: int = 5
    max_document: int = 8 << 20
    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    document_seconds: float = 60.0
    attempts: int = 4
    first_pause: float = 0.5
    longest_wait: float = LONGEST_WAIT


class _Connection(HTTPConnection):
    """Can be cut by an `Interrupt`, when it is new and when it was kept from an earlier request."""

    def _new_conn(self) -> socket.socket:
        connected = super()._new_conn()
        try:
            watch(connected)
        except OSError:
            connected.close()
            raise
        return connected

    def putrequest(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - http.client's
        if self.sock is not None:
            watch(self.sock)
        super().putrequest(*arguments, **named)


class _SecureConnection(_Connection, HTTPSConnection):
    """The same over TLS."""


class _PublicConnection(_SecureConnection):
    """Connects to public addresses only."""

    def _new_conn(self) -> socket.socket:
        # Checked before, because a private host must not receive anything; and after, because
        # the name may have changed its address in between (DNS rebinding).
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


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _PublicPool(HTTPSConnectionPool):
    ConnectionCls = _PublicConnection


def _certificates() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # a slim image may lack its own
    return context


def _pools(
    context: ssl.SSLContext, limits: HttpLimits, **classes: type[HTTPConnectionPool]
) -> urllib3.PoolManager:
    manager = urllib3.PoolManager(
        num_pools=32,
        maxsize=64,
        retries=False,
        timeout=urllib3.Timeout(connect=limits.connect_timeout, read=limits.read_timeout),
        ssl_context=context,
    )
    manager.pool_classes_by_scheme = dict(classes)
    return manager


class Reply:
    """An answer whose body has not been read yet; a context manager that ends the connection.

    Attributes:
        url: the last one after redirects; a secret, if it is signed.
        hops: redirects that were followed.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str, hops: int = 0) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.headers
        self.url = url
        self.hops = hops
        self._is_shut_down = False

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
            # AttributeError: a TLS socket that is shut down while it is read.
            raise _failed(self.url, error) from error
        if self._is_shut_down:
            # A TLS socket that was shut down returns bytes that are still encrypted.
            raise _failed(self.url, ConnectionAbortedError())
        return block

    def document(self, most: int = HttpLimits.max_document) -> Document:
        """Read all of it, up to `most` bytes."""
        body = b""
        # Several reads, because only the read after a premature end fails.
        while block := self.read(most - len(body)):
            body += block
        return Document(self.status, self.headers, body)

    def shutdown(self) -> None:
        """Cut the connection, from any thread: the thread that reads gets an error."""
        self._is_shut_down = True
        with suppress(OSError, ValueError, RuntimeError):  # it has ended already
            self._response.shutdown()

    def close(self) -> None:
        """Close it; keep the connection for the next request if the answer was read to its end."""
        self._response.close()


class SafeHttpClient:
    """A client for the hosts of models. Thread-safe.

    Args:
        trusted_hosts: `host[:port]` that the operator exempts from https and public addresses.
        tokens: URL -> bearer token for the URL's origin (`https://civitai.com`).
    """

    def __init__(
        self,
        trusted_hosts: Collection[str] = (),
        tokens: Mapping[str, str] | None = None,
        limits: HttpLimits | None = None,
    ) -> None:
        self._trusted = {host.lower() for host in trusted_hosts}
        self._tokens = {origin(url): token for url, token in (tokens or {}).items()}
        self._limits = limits or HttpLimits()
        context = _certificates()
        self._public_pools = _pools(context, self._limits, https=_PublicPool)
        self._trusted_pools = _pools(context, self._limits, http=_Pool, https=_SecurePool)

    def open(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        same_host: bool = False,
    ) -> Reply:
        """Send a request and follow redirects; answers of every status are returned.

        With `same_host`, a redirect to another host is returned as the answer.

        Raises:
            ModelUrlRefused: the URL, or one that it redirects to, is not allowed.
            ModelHostFailed: no answer; another attempt may succeed.
        """
        for hops in range(self._limits.max_redirects + 1):
            response = self._send(method, url, dict(headers or {}))
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or not target:
                return Reply(response, url, hops)
            try:
                target = joined(url, target)
            except ModelUrlRefused:
                response.close()
                raise
            if same_host and origin(target) != origin(url):
                return Reply(response, url, hops)
            response.close()
            url = target
        most = self._limits.max_redirects
        raise ModelUrlRefused(
            f"{origin(url)} redirects more than {most} times.",
            hint="Name the URL of the file itself: this one may lead in a circle, or to a login.",
        )

    def ask(
        self,
        url: str,
        *,
        method: str = "GET",
        same_host: bool = False,
        stop: threading.Event = NO_CANCEL,
    ) -> Document:
        """Request a small document; if the host is busy, try again after a pause.

        Raises:
            ModelUrlRefused, ModelHostFailed: as `open`.
            FetchStopped: `stop` was set.
        """
        limits = self._limits
        backoff = Backoff(limits.first_pause, limits.longest_wait, longest_wait=limits.longest_wait)
        for attempt in range(1, limits.attempts + 1):
            last = attempt == limits.attempts
            try:
                with (
                    within(limits.document_seconds, stop),
                    self.open(url, method=method, same_host=same_host) as reply,
                ):
                    document = reply.document(limits.max_document)
                if last or not _is_busy(document):
                    return document
                asked_for = retry_after(document.headers)
            except ModelHostFailed:
                if last and not stop.is_set():
                    raise
                asked_for = None
            if stop.wait(backoff.pause(asked_for)):
                raise FetchStopped("the download was stopped.")
        raise AssertionError("the last attempt returns or raises")

    def check(self, url: str) -> None:
        """Check that a request to the URL is allowed; its host name is not looked up.

        Raises:
            ModelUrlRefused: it is not a URL; or its host is not trusted, and it is not https or has
                an address that is not public.
        """
        host = parsed(url).host or ""
        if self._pools_for(url) is self._public_pools and not is_public_host(host):
            raise ModelUrlRefused(f"the host {host!r} has no public address.", host=host)

    def put(self, url: str, data: bytes, content_type: str) -> Document:
        """Send a file, once, as `send`."""
        return self.send("PUT", url, {"Content-Type": content_type}, data)

    def post(self, url: str, data: bytes, content_type: str) -> Document:
        """As `put`, with POST."""
        return self.send("POST", url, {"Content-Type": content_type}, data)

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        data: bytes | None = None,
        *,
        most: int = HttpLimits.max_document,
    ) -> Document:
        """Send a request, once; a redirect is returned, because the request is for one host.

        Of the answer at most `most` bytes are read.

        Raises:
            ModelUrlRefused: the URL is not allowed.
            ModelHostFailed: no answer; another attempt may succeed.
        """
        with Reply(self._send(method, url, dict(headers), data), url) as reply:
            return reply.document(most)

    def etag(self, url: str) -> str | None:
        """The file's current strong ETag at the host; None if it has none or does not answer."""
        try:
            with (
                within(self._limits.document_seconds),
                self.open(url, headers={"Range": "bytes=0-0"}) as reply,
            ):
                return strong(reply.headers.get("ETag")) if reply.status in _HAS_FILE else None
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
        parts = parsed(url)
        if parts.netloc in self._trusted:
            if parts.scheme in {"http", "https"}:
                return self._trusted_pools
        elif parts.scheme == "https" and parts.host:
            return self._public_pools
        raise ModelUrlRefused(f"{shown(url)!r} is not an https URL.", host=parts.host)


def _failed(url: str, error: Exception) -> ModelHostFailed:
    host = parsed(url).host
    return ModelHostFailed(f"{host}: the connection failed ({type(error).__name__}).", host=host)


def _is_busy(document: Document) -> bool:
    challenged = document.status == 403 and b"Just a moment" in document.body  # noqa: PLR2004
    return document.status in BUSY or challenged
