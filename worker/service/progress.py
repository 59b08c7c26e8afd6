"""A job's progress reports: posted in order, at most one a second.

The SDK's own reports overtake each other, and one that arrives after the result leaves the job
IN_PROGRESS for ever. So each report here is posted after the previous one was answered, only
the newest is posted, and leaving the context waits for the report that is being posted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from worker import log

# Phase in `timings` -> `phase` of the progress report that is sent when it begins.
_REPORTED = {"prepare": "resolve", "images": "resolve", "generate": "load", "deliver": "upload"}

ProgressReport = dict[str, Any]
Post = Callable[[ProgressReport], Awaitable[object]]


@dataclass(frozen=True)
class ProgressTiming:
    """Waits, in seconds.

    Attributes:
        every: between two reports.
        patience: how long to wait until a report was posted.
    """

    every: float = 1.0
    patience: float = 5.0


DEFAULT_TIMING = ProgressTiming()


class JobProgress:
    """The progress of one job. An asynchronous context: after it no report is posted.

    Args:
        post: sends one report to RunPod; None: nothing is sent.

    Attributes:
        latest: the newest report, see `worker.service.report.Progress`.
    """

    def __init__(self, post: Post | None = None, timing: ProgressTiming = DEFAULT_TIMING) -> None:
        self.latest: ProgressReport = {}
        self._post = post
        self._timing = timing
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._closed = asyncio.Event()
        self._posting: asyncio.Task[None] | None = None

    def entered(self, phase: str) -> None:
        """Log and report that a phase of the job has begun."""
        log.phase.set(phase)
        self.report({"phase": _REPORTED.get(phase, phase)})

    def report(self, report: Mapping[str, Any]) -> None:
        """Take a report, to be posted soon; callable from any thread, does not block."""
        self.latest = dict(report)
        with suppress(RuntimeError):  # a download may still report after the loop is closed
            self._loop.call_soon_threadsafe(self._changed.set)

    def part(self, number: int, count: int) -> JobProgress:
        """The progress of one input of a batch, reported as the batch's own; `number` from 1."""
        return _Part(self, number, count)

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
        # Contexts and timers of the job may outlive it and keep this object, and `post` the job.
        self._post = None
        self._closed.set()
        self._changed.set()
        if self._posting:
            await asyncio.wait({self._posting})

    async def _post_all(self, post: Post) -> None:
        while await self._changed.wait() and not self._closed.is_set():
            self._changed.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(post(self.latest), self._timing.patience)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closed.wait(), self._timing.every)


class _Part(JobProgress):
    """Reports to the job of the batch, with the input's number."""

    def __init__(self, whole: JobProgress, number: int, count: int) -> None:
        super().__init__()
        self._whole = whole
        self._place = {"input": number, "inputs": count}

    def report(self, report: Mapping[str, Any]) -> None:
        self.latest = {**report, **self._place}
        self._whole.report(self.latest)
