"""Taking jobs from RunPod: one long poll at a time, and none lost when it must end."""

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

logger = logging.getLogger("worker.runpod")

Job = dict[str, Any]

HOLD = 90.0  # seconds for one long poll, as in the SDK
LAST_WORDS = 0.4  # seconds for an answer that is under way when the worker must end
REST_OF_ANSWER = 5.0  # seconds for the rest of one whose beginning is there
CONNECT = 10.0  # seconds
_TOO_MANY = 429
_TOO_MANY_PAUSE = 5.0  # seconds, as in the SDK

# A hold of 90 s is long enough for a router in between to forget the connection.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}

# What Python does not read, the job's caller must hear of: it is valid JSON all the same.
_TOO_DEEP = "(JSON that is nested too deeply, in this job or one beside it)"
_LONGEST_INTEGER = 4000  # digits; Python refuses more than 4300
_TOKEN = re.compile(r'"id"\s*:\s*"([^"\\]+)"|"[^"\\]*(?:\\.[^"\\]*)*"|[{}]')

_AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]


class TakeFailed(Exception):
    """RunPod gave no answer to a poll, or none that can be used.

    Attributes:
        retry_after: seconds that it asked for, if it did.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class JobPoller:
    """The connection on which jobs are taken; use it as an asynchronous context."""

    def __init__(self, url: str, headers: dict[str, str], *, hold: float = HOLD) -> None:
        self._url = url
        self._hold = hold
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._answering = False
        self._hung_up = False
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, socket_factory=self._socket),
            headers=headers,
            # No limit for the whole: the rest of an answer may hold a job.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=2 * hold),
        )

    async def __aenter__(self) -> JobPoller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def take(self, count: int, *, busy: bool, ending: asyncio.Future[None]) -> list[Job]:
        """Up to `count` jobs; none when RunPod has none, or when `ending` is done first.

        Raises:
            TakeFailed: wait before the next one.
        """
        self._hung_up = False
        poll = asyncio.ensure_future(self._poll(count, busy=busy))
        try:
            first: set[asyncio.Future[Any]] = {poll, ending}
            await asyncio.wait(first, timeout=self._hold, return_when=asyncio.FIRST_COMPLETED)
            if not poll.done():
                await self._hang_up(poll)
            return [] if poll.cancelled() else poll.result()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            if self._hung_up:
                return []
            raise TakeFailed(f"no answer, {type(error).__name__}") from error
        finally:
            poll.cancel()

    async def _hang_up(self, poll: asyncio.Future[list[Job]]) -> None:
        """Tell RunPod that nobody listens any more, but do listen for a moment.

        To cancel the poll would throw away a job that is already on its way. So only our half of
        the connection is closed: RunPod sees the end of the poll and closes the other half, or an
        answer was on its way and comes first.
        """
        self._hung_up = True
        for one in list(self._sockets):
            with contextlib.suppress(OSError):  # closed already
                one.shutdown(socket.SHUT_WR)
        await asyncio.wait({poll}, timeout=LAST_WORDS)
        if self._answering:
            await asyncio.wait({poll}, timeout=REST_OF_ANSWER)
        if not poll.done():
            poll.cancel()
            await asyncio.wait({poll})

    async def _poll(self, count: int, *, busy: bool) -> list[Job]:
        try:
            async with self._session.get(self._address(count, busy=busy)) as response:
                self._answering = True
                return await _jobs(response)
        finally:
            self._answering = False

    def _address(self, count: int, *, busy: bool) -> str:
        url = f"{self._url}&job_in_progress={busy:d}"
        if count == 1:
            return url
        return url.replace("/job-take/", "/job-take-batch/") + f"&batch_size={count}"

    def _socket(self, address: _AddressInfo) -> socket.socket:
        if self._hung_up:  # aiohttp would send the poll again, on a new connection
            raise ConnectionAbortedError
        family, kind, protocol, _name, _address = address
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):  # not on every system
                made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._sockets.add(made)
        return made


async def _jobs(response: aiohttp.ClientResponse) -> list[Job]:
    """The jobs in an answer that has begun.

    Raises:
        TakeFailed: it is an error, or not what an answer looks like.
    """
    if response.status == 204:  # noqa: PLR2004 - HTTP's No Content
        return []
    if response.status != 200:  # noqa: PLR2004 - HTTP's OK
        least = _TOO_MANY_PAUSE if response.status == _TOO_MANY else 0.0
        asked = max(least, retry_after(response.headers) or 0.0)
        raise TakeFailed(f"HTTP {response.status}", asked)
    text = await response.text(errors="replace")  # so that the job's caller hears of it
    try:
        found = json.loads(text, parse_int=_integer) if text.strip() else None
    except RecursionError:
        found = [{"id": job_id, "input": _TOO_DEEP} for job_id in _ids(text)]
    except ValueError as error:
        raise TakeFailed("the answer is no JSON") from error
    if not found:
        return []
    jobs = found if isinstance(found, list) else [found]
    known = [job for job in jobs if isinstance(job, dict) and isinstance(job.get("id"), str)]
    if len(known) < len(jobs):
        # Without an id there is nobody to tell.
        logger.error("RunPod gave %d jobs without an id", len(jobs) - len(known))
    return known


def _integer(digits: str) -> int | float:
    """An integer that is too long for Python is infinite, and no field allows that."""
    return int(digits) if len(digits) <= _LONGEST_INTEGER else float(digits)


def _ids(text: str) -> list[str]:
    """The ids of the jobs in an answer, however deep the rest of it is nested."""
    ids, depth = [], 0
    for token in _TOKEN.finditer(text):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if token[1] and depth == 1:
            ids.append(token[1])
    return ids
