"""A job's request: posted, followed, and stopped when its job ends before it does.

A caller that stops waiting for a POST first makes sure that it does not run in the engine any more.
So no job is sent again while it may still run, and no job waits for an abandoned one.
`worker.webui.pipeline` has the rules for the moment when two jobs have requests in the engine.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from worker.errors import ConnectionLost, WorkerError
from worker.generation import ending, picture
from worker.stopwatch import Stopwatch
from worker.webui.client import WebUI, of_generation
from worker.webui.lifecycle import Lifecycle
from worker.webui.pipeline import Disturbed, NextJob, Slot
from worker.webui.timing import EngineTiming

ReportProgress = Callable[[Mapping[str, Any]], None]

log = logging.getLogger(__name__)
T = TypeVar("T")


class Runner:
    """Runs the requests that compute."""

    def __init__(self, webui: WebUI, lifecycle: Lifecycle, timing: EngineTiming) -> None:
        self._webui = webui
        self._lifecycle = lifecycle
        self._timing = timing
        self._asked: asyncio.Future[Any] | None = None  # the last call that computes no picture

    async def run(
        self,
        post: Callable[[float], T],
        stopwatch: Stopwatch,
        slot: Slot,
        next_job: NextJob | None = None,
    ) -> T:
        """Post; at the deadline, or when the job is cancelled, the engine is stopped first.

        Args:
            post: gets the seconds to wait for the answer; called in a thread.
            stopwatch: the job's deadline.
            slot: the job's use of the engine.
            next_job: may send its requests when this one is nearly done; None: when the job ends.

        Raises:
            JobTimeout, asyncio.CancelledError: after the engine has stopped, or counts as hung.
            Disturbed: after the engine has stopped; the request must be repeated.
            WorkerError: as from `post`.
        """
        if not stopwatch.left():
            raise stopwatch.expired("no result")
        if slot.is_disturbed:  # before anything is sent
            raise Disturbed
        # The deadline is kept here and not by the socket: the POST must stay open until the engine
        # has stopped, because its end is the best sign of that.
        patience = stopwatch.left() + slot.seconds_before() + 4 * self._timing.stop_patience
        posted = asyncio.ensure_future(asyncio.to_thread(post, patience))
        try:
            async with self._passing_on(slot, next_job):
                await _answered(posted, slot.before, stopwatch)
        except asyncio.CancelledError:
            await finish(self._stop(posted, slot))
            raise
        if slot.is_disturbed:
            await finish(self._stop(posted, slot))
            raise Disturbed
        if not posted.done():
            await finish(self._stop(posted, slot))
            raise stopwatch.expired("no result")
        return posted.result()

    async def ask(self, call: Callable[..., T], stopwatch: Stopwatch, *arguments: Any) -> T:  # noqa: ANN401 - those of `call`
        """The answer of a call that computes no picture, such as one that reads the folders again.

        Such a call cannot be interrupted. At the deadline it goes on if the engine still answers
        others, and the next job waits for it with `settled`; if it does not, it is restarted.

        Raises:
            JobTimeout: it was not done at the deadline.
            WorkerError: as from `call`.
        """
        self._asked = asked = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
        asked.add_done_callback(read)
        await self._end_of_call(stopwatch)
        return asked.result()

    async def settled(self, stopwatch: Stopwatch) -> None:
        """Wait until the last job's call has ended, which may have been late.

        Raises:
            JobTimeout: it has not at the deadline.
        """
        if self._asked and not self._asked.done():
            await self._end_of_call(stopwatch)

    async def _end_of_call(self, stopwatch: Stopwatch) -> None:
        assert self._asked  # noqa: S101 - its callers have set it
        await asyncio.wait({self._asked}, timeout=stopwatch.left())
        if not self._asked.done():
            await finish(self._end_if_hung())
            hint = "Send the job again: the engine was slow, or is restarted."
            raise stopwatch.expired("the engine did not answer", hint=hint)

    async def _end_if_hung(self) -> None:
        answered = asyncio.ensure_future(asyncio.to_thread(self._webui.progress))
        answered.add_done_callback(read)
        await asyncio.wait({answered}, timeout=self._timing.stop_patience)
        is_alive = answered.done() and not isinstance(answered.exception(), ConnectionLost)
        if not is_alive and self._lifecycle.is_proven():
            self._lifecycle.give_up_on_hung()

    async def arrange(self, work: Callable[[], None], stopwatch: Stopwatch) -> None:
        """Do work on the engine's folders, in a thread.

        Raises:
            JobTimeout: a folder did not answer; the worker is to be replaced.
        """
        arranging = asyncio.ensure_future(asyncio.to_thread(work))
        arranging.add_done_callback(read)
        patience = max(stopwatch.left(), self._timing.arrange_patience)
        await asyncio.wait({arranging}, timeout=patience)
        if not arranging.done():
            self._lifecycle.retire("the folders of models do not answer.")
            hint = "Send the job again: this worker is replaced."
            raise stopwatch.expired("the folders of models did not answer", hint=hint)
        arranging.result()

    async def _stop(self, posted: asyncio.Future[T], slot: Slot) -> None:
        """Interrupt until the POST returns; its partial picture is dropped."""
        posted.add_done_callback(read)  # nothing awaits it any more
        # An interrupt would stop the job before this one. That one ends at its own deadline.
        both: set[asyncio.Future[Any]] = {posted, slot.before}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if slot.passed_on:  # nearly done; an interrupt might stop the next job
            await asyncio.wait({posted}, timeout=self._timing.stop_patience)
            if not posted.done():
                await slot.alone()
        give_up = time.monotonic() + self._timing.stop_patience
        while not posted.done() and time.monotonic() < give_up:
            # A1111 forgets an interrupt that arrives before the job has begun: send it again.
            with suppress(WorkerError):
                await asyncio.to_thread(self._webui.interrupt)
            await asyncio.wait({posted}, timeout=self._timing.stop_poll)
        if not posted.done():
            self._lifecycle.give_up_on_hung()

    @asynccontextmanager
    async def _passing_on(self, slot: Slot, next_job: NextJob | None) -> AsyncIterator[None]:
        """Pass the engine on while the body waits for the answer."""
        if next_job is None or not slot.may_pass_on:
            yield
            return
        passing = asyncio.create_task(self._pass_on(slot, next_job))
        try:
            yield
        finally:
            passing.cancel()

    async def _pass_on(self, slot: Slot, next_job: NextJob) -> None:
        """Wait until this job's request is nearly done and another job needs the engine."""
        await asyncio.wait({slot.before})
        await self._nearly_done()
        next_job.may_come()
        await next_job.is_there()
        slot.pass_on()
        next_job.may_start()

    async def _nearly_done(self) -> None:
        """Wait until the request that runs is nearly done.

        A look costs the engine 1 ms of its thread: with an eighth of the time so far between two of
        them, and near the end a 64th, a long request has few, whatever the engine's estimate is;
        and the end of a short one is not missed by much.
        """
        began = time.monotonic()
        seen: ending.Seen | None = None
        was_running = False
        # Seen to run once, it is over when it does not run.
        while not (seen and was_running and (seen.is_nearly_done or not seen.is_running)):
            left = seen.seconds_left if seen and was_running else math.inf
            passed = time.monotonic() - began
            least = max(self._timing.end_poll, passed / 64)
            most = max(self._timing.end_poll_longest, passed / 8)
            await asyncio.sleep(min(max(left / 2, least), most))
            seen = await self._seen()
            was_running = was_running or bool(seen and seen.is_running)

    async def _seen(self) -> ending.Seen | None:
        """What the engine does; None if it does not say: the next job waits for this one's end."""
        with suppress(WorkerError):
            return ending.seen(await asyncio.to_thread(self._webui.progress))
        return None

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
    async def followed(
        self, report: ReportProgress, slot: Slot, *, preview: bool
    ) -> AsyncIterator[None]:
        """Report the engine's progress while the body runs."""
        following = asyncio.create_task(self._follow(report, slot, preview=preview))
        try:
            yield
        finally:
            following.cancel()

    async def _follow(self, report: ReportProgress, slot: Slot, *, preview: bool) -> None:
        await asyncio.wait({slot.before})  # the engine shows that job's progress
        for number in itertools.count(1):
            await asyncio.sleep(self._timing.progress_every)
            with suppress(WorkerError):  # the picture does not depend on it
                progress = await asyncio.to_thread(self._progress, preview=preview)
                if slot.passed_on:  # it may be the next job's
                    return
                report(progress)
                if number % self._timing.progress_per_log_line == 0:
                    log.info("%s", progress.get("message", progress["phase"]))

    def _progress(self, *, preview: bool) -> dict[str, Any]:
        answer = self._webui.progress(preview=preview)
        image = answer.get("current_image")
        small = picture.thumbnail(image) if preview and image else None
        return of_generation(answer) | ({"preview": small} if small else {})


def read(future: asyncio.Future[Any]) -> None:
    """Take its exception, or asyncio logs it as never retrieved."""
    if not future.cancelled():
        future.exception()


async def _answered(
    posted: asyncio.Future[T], before: asyncio.Future[bool], stopwatch: Stopwatch
) -> None:
    """Wait for the end of the job before, which has a deadline of its own, and for the answer.

    Returns without an answer at the deadline, and if the request must be repeated.
    """
    await asyncio.wait({before})
    if before.result():
        await asyncio.wait({posted}, timeout=stopwatch.left())


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
