"""How far a job is, for whoever asked for it: posted in order, at most one a second.

The SDK's own reports overtake each other, and one that arrives behind the result leaves the job
in progress for good. So here the next report waits for the last one's answer, only the newest is
ever posted, and `close` returns when nothing is under way any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

EVERY = 1.0  # seconds between two reports
PATIENCE = 5.0  # seconds for a report to arrive

ProgressReport = dict[str, Any]
Post = Callable[[ProgressReport], Awaitable[object]]


class JobProgress:
    """The progress of one job; an asynchronous context whose end is that of the reports.

    Args:
        post: sends one report; None where there is nobody to send it to.

    Attributes:
        latest: the newest report: `phase`, and where known `percent` (0 to 100), `eta_seconds`,
            `step`, `steps`, `message`, `preview`.
    """

    def __init__(self, post: Post | None = None, every: float = EVERY) -> None:
        self.latest: ProgressReport = {}
        self._post = post
        self._every = every
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._closed = asyncio.Event()
        self._posting: asyncio.Task[None] | None = None

    def enter(self, phase: str) -> None:
        """A phase has begun."""
        self.report({"phase": phase})

    def report(self, report: Mapping[str, Any]) -> None:
        """There is news; from any thread, and never waits."""
        self.latest = dict(report)
        with suppress(RuntimeError):  # a download that outlives the loop has nobody to tell
            self._loop.call_soon_threadsafe(self._news.set)

    async def __aenter__(self) -> JobProgress:
        if self._post:
            self._posting = asyncio.create_task(self._post_all(self._post))
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._news.set()
        if self._posting:
            await asyncio.wait({self._posting})

    async def _post_all(self, post: Post) -> None:
        while await self._news.wait() and not self._closed.is_set():
            self._news.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(post(self.latest), PATIENCE)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closed.wait(), self._every)
