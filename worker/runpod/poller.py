"""Takes jobs from RunPod: one long poll at a time; ending a poll loses no job."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
import weakref
from typing import Any

import aiohttp

from worker.http.backoff import retry_after
from worker.runpod.timing import TransportTiming

logger = logging.getLogger(__name__)

RunPodJob = dict[str, Any]

_OK, _NO_CONTENT, _TOO_MANY_REQUESTS = 200, 204, 429

# During a poll of 90 s without data, a router on the way may forget the connection.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}

# Valid JSON that Python does not parse must not be dropped: the job's caller gets an error for it.
_TOO_DEEP = "(JSON that is nested too deeply, in this job or in another one of the same answer)"
_LONGEST_INTEGER = 4000  # digits; Python refuses more than 4300
# A text without an end is one up to the end of the answer, so that nothing is searched twice.
_TOKEN = re.compile(
    r'"id"\s*:\s*"([^"\\]+)"|"[^"\\]*(?:\\(?:.|\Z)[^"\\]*)*(?:"|\Z)|[{}]', re.DOTALL
)

_AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]


class PollFailed(Exception):
    """RunPod did not answer a poll, or its answer cannot be used.

    Attributes:
        retry_after: seconds that RunPod asked to wait, if it did.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class JobPoller:
    """The connection on which jobs are taken; an asynchronous context manager."""

    def __init__(self, url: str, headers: dict[str, str], timing: TransportTiming) -> None:
        self._url = url
        self._timing = timing
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._answer_has_begun = False
        self._is_ended = False
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, socket_factory=self._open_socket),
            headers=headers,
            # No total limit: the rest of an answer may contain a job.
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=timing.connect, sock_read=2 * timing.hold
            ),
        )

    async def __aenter__(self) -> JobPoller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def take(
        self, count: int, *, busy: bool, ending: asyncio.Future[None]
    ) -> list[RunPodJob]:
        """Up to `count` jobs; none if RunPod has none, or if `ending` is done first.

        Raises:
            PollFailed: wait before the next poll.
        """
        self._is_ended = False
        poll = asyncio.ensure_future(self._poll(count, busy=busy))
        try:
            either: set[asyncio.Future[Any]] = {poll, ending}
            await asyncio.wait(
                either, timeout=self._timing.hold, return_when=asyncio.FIRST_COMPLETED
            )
            if not poll.done():
                await self._end_poll(poll)
            return [] if poll.cancelled() else poll.result()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            if self._is_ended:
                return []
            raise PollFailed(f"no answer, {type(error).__name__}") from error
        finally:
            poll.cancel()

    async def _end_poll(self, poll: asyncio.Future[list[RunPodJob]]) -> None:
        """End the poll without losing a job that is already on its way, as cancelling it would.

        Only our half of the connection is closed. RunPod then sees the end of the poll and closes
        the other half; if it has just answered, the answer arrives first.
        """
        self._is_ended = True
        for connected in list(self._sockets):
            with contextlib.suppress(OSError):  # closed already
                connected.shutdown(socket.SHUT_WR)
        await asyncio.wait({poll}, timeout=self._timing.ended_poll)
        if self._answer_has_begun:
            await asyncio.wait({poll}, timeout=self._timing.begun_answer)
        if not poll.done():
            poll.cancel()
            await asyncio.wait({poll})

    async def _poll(self, count: int, *, busy: bool) -> list[RunPodJob]:
        try:
            async with self._session.get(self._url_for(count, busy=busy)) as response:
                self._answer_has_begun = True
                return await self._read_jobs(response)
        finally:
            self._answer_has_begun = False

    def _url_for(self, count: int, *, busy: bool) -> str:
        url = f"{self._url}&job_in_progress={busy:d}"
        if count == 1:
            return url
        return url.replace("/job-take/", "/job-take-batch/") + f"&batch_size={count}"

    def _open_socket(self, address: _AddressInfo) -> socket.socket:
        if self._is_ended:  # aiohttp would send the poll again, on a new connection
            raise ConnectionAbortedError
        family, kind, protocol, _name, _address = address
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):  # not on every system
                opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._sockets.add(opened)
        return opened

    async def _read_jobs(self, response: aiohttp.ClientResponse) -> list[RunPodJob]:
        """The jobs in an answer that has begun.

        Raises:
            PollFailed: the answer is an error, or is not JSON.
        """
        if response.status == _NO_CONTENT:
            return []
        if response.status != _OK:
            is_limit = response.status == _TOO_MANY_REQUESTS
            least = self._timing.too_many_requests if is_limit else 0.0
            pause = max(least, retry_after(response.headers) or 0.0)
            raise PollFailed(f"HTTP {response.status}", pause)
        # An invalid byte must not lose the job either.
        return _parse_jobs(await response.text(errors="replace"))


def _parse_jobs(text: str) -> list[RunPodJob]:
    try:
        found = json.loads(text, parse_int=_parse_integer) if text.strip() else None
    except RecursionError:
        found = [{"id": job_id, "input": _TOO_DEEP} for job_id in _find_ids(text)]
    except ValueError as error:
        raise PollFailed("the answer is not JSON") from error
    if not found:
        return []
    jobs = found if isinstance(found, list) else [found]
    with_id = [job for job in jobs if isinstance(job, dict) and isinstance(job.get("id"), str)]
    if len(with_id) < len(jobs):
        # Without an id, no error can be posted.
        logger.error("RunPod sent %d jobs without an id: dropped", len(jobs) - len(with_id))
    return with_id


def _parse_integer(digits: str) -> int | float:
    """An integer; one that is too long for Python becomes infinite, which every field refuses."""
    return int(digits) if len(digits) <= _LONGEST_INTEGER else float(digits)


def _find_ids(text: str) -> list[str]:
    """The ids of the jobs in an answer, however deeply the rest of it is nested."""
    ids, depth = [], 0
    for token in _TOKEN.finditer(text):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if token[1] and depth == 1:
            ids.append(token[1])
    return ids
