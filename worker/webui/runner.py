"""One request at a time: posted, followed, and stopped when its job ends before it does.

A caller that stops waiting for a POST first makes sure that nothing runs in the engine any more.
So no job is sent again while it may still run, and no job waits for an abandoned one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from worker.errors import WorkerError
from worker.generation import picture
from worker.stopwatch import Stopwatch
from worker.webui.client import WebUI, of_generation
from worker.webui.lifecycle import Lifecycle
from worker.webui.timing import EngineTiming

ReportProgress = Callable[[Mapping[str, Any]], None]

log = logging.getLogger(__name__)
T = TypeVar("T")


class Runner:
    """Runs one request that computes after the other. Not for concurrent use."""

    def __init__(self, webui: WebUI, lifecycle: Lifecycle, timing: EngineTiming) -> None:
        self._webui = webui
        self._lifecycle = lifecycle
        self._timing = timing

    async def run(self, post: Callable[[float], T], stopwatch: Stopwatch) -> T:
        """Post; at the deadline, or when the job is cancelled, the engine is stopped first.

        Args:
            post: gets the seconds to wait for the answer; called in a thread.
            stopwatch: the job's deadline.

        Raises:
            JobTimeout, asyncio.CancelledError: after the engine has stopped, or counts as hung.
            WorkerError: as from `post`.
        """
        if not stopwatch.left():
            raise stopwatch.expired("no result")
        # The deadline is kept here and not by the socket: the POST must stay open until the engine
        # has stopped, because its end is the best sign of that.
        patience = stopwatch.left() + 2 * self._timing.stop_patience
        posted = asyncio.ensure_future(asyncio.to_thread(post, patience))
        try:
            done, _ = await asyncio.wait({posted}, timeout=stopwatch.left())
        except asyncio.CancelledError:
            await finish(self._stop(posted))
            raise
        if not done:
            await finish(self._stop(posted))
            raise stopwatch.expired("no result")
        return posted.result()

    async def _stop(self, posted: asyncio.Future[T]) -> None:
        """Interrupt until the POST returns; its partial picture is dropped."""
        # Nothing awaits it any more: take its exception, or asyncio logs it as never retrieved.
        posted.add_done_callback(lambda future: future.cancelled() or future.exception())
        give_up = time.monotonic() + self._timing.stop_patience
        while not posted.done() and time.monotonic() < give_up:
            # A1111 forgets an interrupt that arrives before the job has begun: send it again.
            with suppress(WorkerError):
                await asyncio.to_thread(self._webui.interrupt)
            await asyncio.wait({posted}, timeout=self._timing.stop_poll)
        if not posted.done():
            self._lifecycle.give_up_on_hung()

    async def settle(self) -> None:
        """After a lost connection: return when nothing can be running in the engine."""
        await finish(self._settle())

    async def _settle(self) -> None:
        give_up = time.monotonic() + self._timing.stop_patience
        while time.monotonic() < give_up:
            if not self._lifecycle.is_proven():
                return  # its process has ended; the next attempt waits for the new one
            with suppress(WorkerError):
                if await asyncio.to_thread(self._webui.is_idle):
                    return
                await asyncio.to_thread(self._webui.interrupt)
            await asyncio.sleep(self._timing.stop_poll)
        self._lifecycle.give_up_on_hung()

    @asynccontextmanager
    async def followed(self, report: ReportProgress, *, preview: bool) -> AsyncIterator[None]:
        """Report the engine's progress while the body runs."""
        following = asyncio.create_task(self._follow(report, preview=preview))
        try:
            yield
        finally:
            following.cancel()

    async def _follow(self, report: ReportProgress, *, preview: bool) -> None:
        for number in itertools.count(1):
            await asyncio.sleep(self._timing.progress_every)
            with suppress(WorkerError):  # the picture does not depend on it
                progress = await asyncio.to_thread(self._progress, preview=preview)
                report(progress)
                if number % self._timing.progress_per_log_line == 0:
                    log.info("%s", progress.get("message", progress["phase"]))

    def _progress(self, *, preview: bool) -> dict[str, Any]:
        answer = self._webui.progress(preview=preview)
        image = answer.get("current_image")
        small = picture.thumbnail(image) if preview and image else None
        return of_generation(answer) | ({"preview": small} if small else {})


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Await the work to its end, even when this job is cancelled meanwhile.

    Raises:
        asyncio.CancelledError: the job was cancelled; raised after the work is done.
    """
    task = asyncio.create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError
