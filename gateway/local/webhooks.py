"""Posts ended jobs to the URLs that their callers chose, as RunPod does.

The caller decides the address, so it must not reach what only this machine can reach: https and
public addresses only. A gateway that listens on a loopback address is used by programs of the same
machine; there, webhooks to loopback addresses are allowed, too.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from gateway.http.head import is_loopback
from gateway.jobs import BadRequest
from gateway.local.stream import memory_of
from worker.errors import ModelHostFailed, ModelUrlRefused
from worker.http.client import HttpLimits, SafeHttpClient
from worker.http.interrupt import within
from worker.http.urls import parsed, shown

logger = logging.getLogger(__name__)

_OK = 200
_LONGEST_URL = 4000
_HTTP_LIMITS = HttpLimits(connect_timeout=5.0, read_timeout=10.0)


@dataclass(frozen=True)
class WebhookLimits:
    """RunPod's attempts and pause, and what this process spends on webhooks.

    Attributes:
        pause: seconds between two attempts.
        seconds: for one attempt: a host may send one byte from time to time.
        pending: webhooks that are not answered yet, at most; further ones are not sent.
        pending_bytes: memory of their jobs together, at most.
        threads: posts at the same time.
    """

    attempts: int = 3
    pause: float = 10.0
    seconds: float = 30.0
    pending: int = 100
    pending_bytes: int = 256_000_000
    threads: int = 4


class Webhooks:
    """Sends webhooks. For one event loop.

    Args:
        trusted_hosts: `host[:port]` that may use http and private addresses.
        allow_loopback: whether webhooks may reach loopback addresses over http.
        own_ports: ports of the engine and of this server, which they never reach there.
    """

    def __init__(
        self,
        trusted_hosts: Collection[str] = (),
        *,
        allow_loopback: bool = False,
        own_ports: Collection[int] = (),
        limits: WebhookLimits = WebhookLimits(),
    ) -> None:
        self._trusted = set(trusted_hosts)
        self._public = SafeHttpClient(trusted_hosts, limits=_HTTP_LIMITS)
        self._allow_loopback = allow_loopback
        self._own_ports = own_ports
        self._limits = limits
        self._threads = ThreadPoolExecutor(limits.threads, thread_name_prefix="webhook")
        self._sending: dict[asyncio.Task[None], int] = {}  # and the memory of its job

    def check(self, url: object) -> str | None:
        """The URL; None if there is none.

        Raises:
            BadRequest: it is not allowed.
        """
        if url is None or url == "":
            return None
        if not isinstance(url, str) or len(url) > _LONGEST_URL:
            raise BadRequest("webhook must be an https URL.")
        try:
            self._client(url).check(url)
        except ModelUrlRefused as error:
            raise BadRequest(
                f"webhook: {error.message} Send an https URL with a public address, or let the"
                " operator add its host to TRUSTED_HOSTS."
            ) from None
        return url

    def send(self, url: str, job: Mapping[str, Any]) -> None:
        """Post the job soon; an answer other than 200 is asked for again, as RunPod does."""
        size, limits = memory_of(job), self._limits
        is_much = size + sum(self._sending.values()) > limits.pending_bytes
        if is_much or len(self._sending) >= limits.pending:
            logger.warning("the webhook of job %s is not sent: too many wait", job.get("id"))
            return
        task = asyncio.ensure_future(self._send(url, job))
        self._sending[task] = size
        task.add_done_callback(self._sending.pop)

    async def sent(self, seconds: float) -> None:
        """Wait until all are sent, for at most so many seconds; then give up the others."""
        if self._sending:
            await asyncio.wait(self._sending, timeout=seconds)
        for task in self._sending:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _send(self, url: str, job: Mapping[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        for attempt in range(1, self._limits.attempts + 1):
            post = functools.partial(self._post, url, job)
            problem = await loop.run_in_executor(self._threads, post)
            if problem is None:
                return
            logger.warning("webhook %s of job %s: %s", shown(url), job.get("id"), problem)
            if attempt < self._limits.attempts:
                await asyncio.sleep(self._limits.pause)

    def _post(self, url: str, job: Mapping[str, Any]) -> str | None:
        """Post once; returns what went wrong."""
        try:
            with within(self._limits.seconds):
                answer = self._client(url).post(url, json.dumps(job).encode(), "application/json")
        except (ModelHostFailed, ModelUrlRefused) as error:
            return error.message
        return None if answer.status == _OK else f"HTTP {answer.status}"

    def _client(self, url: str) -> SafeHttpClient:
        parts = parsed(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        is_allowed = self._allow_loopback and port not in self._own_ports
        if is_allowed and is_loopback(parts.host or ""):
            return SafeHttpClient({*self._trusted, parts.netloc or ""}, limits=_HTTP_LIMITS)
        return self._public
