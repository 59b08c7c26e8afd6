"""Requests to a RunPod endpoint: with its key, within limits, and repeated where that is safe."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp

from gateway.jobs import BadRequest, EndpointFailed, GatewayError, NoSuchJob, TooManyJobs
from worker.answer import plain
from worker.http.backoff import Backoff
from worker.json_text import loads
from worker.shown import shown

MB = 1_000_000
Sleep = Callable[[float], Awaitable[object]]

logger = logging.getLogger(__name__)


class WrongEndpoint(EndpointFailed):
    """The endpoint's id, its URL or the API key is wrong; trying again is no use."""


class TooLarge(GatewayError):
    """RunPod takes no request of this size."""

    status = 413


class _Uncertain(EndpointFailed):
    """No answer arrived that could be read, although RunPod may have had the request."""


class _NotSent(EndpointFailed):
    """The request did not reach RunPod."""


class _Endless(EndpointFailed):
    """The answer is larger than any that RunPod has."""


class _Busy(EndpointFailed):
    """RunPod answered that it cannot work on the request now."""


@dataclass(frozen=True)
class Address:
    """A RunPod endpoint.

    Attributes:
        url: base of its routes, such as https://api.runpod.ai/v2/abc.
        key: API key; sent to this URL's host only. Empty: none is sent.
    """

    url: str
    key: str = ""

    def __repr__(self) -> str:
        """Without the key."""
        return f"Address({self.url!r})"


@dataclass(frozen=True)
class HttpLimits:
    """Limits on the requests to the endpoint.

    Attributes:
        request: bytes of a request; RunPod's own limit for /run.
        answer: bytes of an answer; RunPod's results have 20 MB at most.
        connect, silence, total: seconds until a connection, between two parts, for everything.
        attempts: of a request that may be repeated.
        first_pause: seconds before the second attempt; then twice as many each time.
        longest_wait: seconds that RunPod may ask for; if it asks for more, the request fails.
    """

    request: int = 10 * MB
    answer: int = 64 * MB
    connect: float = 10
    silence: float = 30
    total: float = 90
    attempts: int = 5
    first_pause: float = 0.5
    longest_wait: int = 30


HTTP_LIMITS = HttpLimits()


class EndpointHttp:
    """Sends requests to one endpoint. For one event loop; call `close` at its end."""

    def __init__(
        self, address: Address, limits: HttpLimits = HTTP_LIMITS, sleep: Sleep = asyncio.sleep
    ) -> None:
        self.address = address
        self._limits = limits
        self._sleep = sleep
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def repeat(self, method: str, path: str) -> dict[str, Any]:
        """Send a request that may arrive twice, several times if needed; returns its answer.

        Raises:
            GatewayError: the last attempt failed, or a further one is no use.
        """
        return await self._try(
            lambda: self._once(method, path, None), (_Uncertain, _NotSent, _Busy, TooManyJobs)
        )

    async def submit(self, path: str, body: object) -> dict[str, Any]:
        """POST a job. It is sent again only if RunPod surely did not take it.

        Raises:
            GatewayError: RunPod refused it; or it is not known whether it arrived.
        CancelledError: the caller was cancelled before RunPod could have the job.
        """
        try:
            data = json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"The job cannot be sent as JSON: {error}.") from None
        if len(data) > self._limits.request:
            raise TooLarge(
                f"The job has {len(data) / MB:.1f} MB, and RunPod takes at most"
                f" {self._limits.request / MB:.0f} MB: send pictures by URL, or smaller ones."
            )
        try:
            return await self._try(lambda: self._whole(path, data), (_NotSent, TooManyJobs))
        except (_Uncertain, _Endless, _Busy) as error:
            raise EndpointFailed(
                f"{error} It is not known whether RunPod has queued the job, so it is not sent"
                " again: look for it in RunPod's console before you do."
            ) from None

    async def close(self) -> None:
        """Close all connections."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def _try(
        self,
        send: Callable[[], Awaitable[dict[str, Any]]],
        repeated: tuple[type[GatewayError], ...],
    ) -> dict[str, Any]:
        limits = self._limits
        backoff = Backoff(limits.first_pause)
        for left in reversed(range(limits.attempts)):
            try:
                return await send()
            except repeated as error:
                if not left or (error.retry_after or 0) > limits.longest_wait:
                    raise
                pause = backoff.pause(error.retry_after)
                logger.info("RunPod is asked again in %.1f s: %s", pause, error)
            await self._sleep(pause)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _whole(self, path: str, data: bytes) -> dict[str, Any]:
        """POST a job. A cancel waits for the answer, which may have the id of a job."""
        sending = asyncio.ensure_future(self._once("POST", path, data))
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            try:
                return await sending
            except (_NotSent, TooManyJobs):
                pass
            raise

    async def _once(self, method: str, path: str, data: bytes | None) -> dict[str, Any]:
        try:
            async with self._session(is_new=data is not None).request(
                method, self.address.url + path, data=data, allow_redirects=False
            ) as answer:
                body = await self._body(answer)
                return self._read(answer, body)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise self._not_sent(error) from None
        except asyncio.TimeoutError:
            raise _Uncertain("RunPod did not answer in time.") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # The type only: a message could quote the request, and its header has the key.
            kind = type(error).__name__
            raise _Uncertain(f"The connection to RunPod broke ({kind}).") from None

    def _session(self, *, is_new: bool) -> aiohttp.ClientSession:
        """A job is posted on a new connection: a kept one may be closed just when it is used."""
        if is_new not in self._sessions:
            key, limits = self.address.key, self._limits
            headers = {"Content-Type": "application/json", "User-Agent": "a1111-worker-bridge/1"}
            self._sessions[is_new] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=is_new, limit=200),
                headers=headers | ({"Authorization": f"Bearer {key}"} if key else {}),
                timeout=aiohttp.ClientTimeout(
                    limits.total, sock_connect=limits.connect, sock_read=limits.silence
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                # A proxy would read the key of a request without TLS.
                trust_env=self.address.url.startswith("https://"),
            )
        return self._sessions[is_new]

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        parts, size = [], 0
        async for part in answer.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > self._limits.answer:
                raise _Endless(f"RunPod's answer has more than {self._limits.answer / MB:.0f} MB.")
        return b"".join(parts)

    def _read(self, answer: aiohttp.ClientResponse, body: bytes) -> dict[str, Any]:
        """The answer's JSON object.

        Raises:
            GatewayError: it has another status, or is none.
        """
        if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
            raise self._failure(answer, body)
        try:
            value = loads(body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise _Uncertain(f"RunPod's answer is no JSON object: {self._quoted(body)}.")
        answered: dict[str, Any] = plain(value)  # half a surrogate pair breaks a log
        return answered

    def _failure(self, answer: aiohttp.ClientResponse, body: bytes) -> GatewayError:
        status, url = answer.status, self.address.url
        wait = _seconds(answer.headers.get("Retry-After", ""))
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _LATER:
            return _Busy(f"RunPod failed (HTTP {status}): {self._quoted(body)}.", retry_after=wait)
        if status < HTTPStatus.BAD_REQUEST:
            return WrongEndpoint(
                f"{url} redirects to another address (HTTP {status}), which does not get the API"
                " key: correct RUNPOD_URL."
            )
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return WrongEndpoint(
                f"RunPod refuses the API key for {url} (HTTP {status}): set RUNPOD_API_KEY to a key"
                " that may use this endpoint."
            )
        refusals: dict[int, GatewayError] = {
            HTTPStatus.NOT_FOUND: NoSuchJob(f"RunPod has nothing at this address: {url}."),
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE: TooLarge(
                "The job is too large for RunPod: send pictures by URL, or smaller ones."
            ),
            HTTPStatus.TOO_MANY_REQUESTS: TooManyJobs(
                "RunPod takes no more requests now (HTTP 429): try again later.", retry_after=wait
            ),
        }
        other = BadRequest(f"RunPod refuses the request (HTTP {status}): {self._quoted(body)}.")
        return refusals.get(status, other)

    def _not_sent(self, error: Exception) -> GatewayError:
        reason = getattr(error, "os_error", error)
        number = getattr(reason, "errno", None) or 0
        # Of a name that is not found the number is negative, and asyncio has words of its own.
        text = os.strerror(number) if number > 0 else getattr(reason, "strerror", None)
        text = text or type(reason).__name__
        if isinstance(reason, ssl.SSLError | ssl.CertificateError):
            return WrongEndpoint(f"{self.address.url} has no valid certificate: {text}.")
        return _NotSent(f"{self.address.url} cannot be reached: {text}.")

    def _quoted(self, body: bytes) -> str:
        text = body[:MB].decode("utf-8", "replace")
        key = self.address.key
        return shown(text.replace(key, "***") if key else text, 200)


_LATER = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY}


def _seconds(text: str) -> int | None:
    is_number = text.isascii() and text.isdecimal() and len(text) <= 6  # noqa: PLR2004 - 11 days
    return int(text) if is_number else None
