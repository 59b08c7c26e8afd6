"""Two jobs at the engine: one computes, the pictures of the one before it are being encoded.

A1111 v1.9.3 computes under a lock but encodes the answer outside of it. So the next request may be
sent a moment before the lock is free: it waits inside the engine, and the GPU has no pause.

The engine cannot tell whose request it computes, and nothing there withdraws a request that waits.
So an interrupt may stop the wrong one. These rules hold:

- At most two requests are in the engine, and the second one is sent when the first one is nearly
  done.
- A job that waits in the engine interrupts nothing until the one before it has ended.
- If a job fails after it has passed the engine on, or must be interrupted then, the next one's
  request is stopped and repeated later: its picture may be incomplete, or made from broken state.
- A job that repairs the engine has it alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass

from worker.stopwatch import Stopwatch


class Disturbed(Exception):
    """The job before has failed or was interrupted: this job's request must be repeated."""


@dataclass(frozen=True)
class NextJob:
    """The job that gets the engine after this one.

    Attributes:
        is_there: returns when such a job waits for the engine.
        may_start: called when it may send its requests; calling it again does nothing.
        may_come: called when this job's pictures are only encoded any more: the worker may take a
            further job; calling it again does nothing.
    """

    is_there: Callable[[], Awaitable[object]]
    may_start: Callable[[], None]
    may_come: Callable[[], None] = lambda: None


class Slot:
    """One job's use of the engine.

    Attributes:
        stopwatch: has the job's deadline.
        passed_on: whether the next job may send its requests, because this one is nearly done.
        may_pass_on: whether the job may still do that; not after a failure.
        closed: True when the job has ended; False when the next one's request must be repeated.
        has_left: whether the job has ended.
    """

    def __init__(self, pipeline: Pipeline, stopwatch: Stopwatch) -> None:
        self.passed_on = False
        self.may_pass_on = True
        self.has_left = False
        self.closed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pipeline = pipeline
        self.stopwatch = stopwatch
        self._holds = False
        self._before: Slot | None = None

    @property
    def before(self) -> asyncio.Future[bool]:
        """`closed` of the job before, or a future that is done if there is none."""
        if self._before is not None:
            return self._before.closed
        nothing: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        nothing.set_result(True)
        return nothing

    @property
    def is_disturbed(self) -> bool:
        """Whether this job's request must be repeated because of the job before."""
        before = self.before
        return before.done() and not before.result()

    def seconds_before(self) -> float:
        """The most seconds until the job before has ended, without its stop."""
        return self._before.stopwatch.left() if self._before and not self.before.done() else 0.0

    def pass_on(self) -> None:
        """Let the next job send its requests; the job before this one must have ended."""
        self.passed_on = True
        self._pipeline.ending = self
        self._release()

    async def alone(self) -> None:
        """Have the engine alone, to repair it or to interrupt what runs.

        Returns after all requests of other jobs have ended. The request of the next job, if it has
        sent one, is stopped. If the job before must be repeated, it is repeated first.
        """
        if self.passed_on:
            self.passed_on = False
            self._close(well=False)  # the next job stops its request, and gives the engine back
            await self._pipeline.engine.acquire()
            self._holds, self._before = True, None
        elif not await asyncio.shield(self.before):
            self._release()  # to the job before, which waits for it since it has failed
            await self.take()

    async def take(self) -> None:
        """Wait until the engine can take this job's requests.

        Raises:
            JobTimeout: the deadline passed before.
        """
        ending = self._pipeline.ending
        is_busy = ending is not None and not ending.has_left
        taking = asyncio.ensure_future(self._pipeline.engine.acquire())
        with self.stopwatch.engine_busy() if is_busy else nullcontext():
            try:
                # That job has a deadline of its own.
                await asyncio.wait({taking}, timeout=None if is_busy else self.stopwatch.left())
            finally:  # also when the job is cancelled at the moment in which it gets the engine
                self._holds = taking.done() or not taking.cancel()
        if not self._holds:
            raise self.stopwatch.expired("the engine was busy with other jobs; no result")
        ending = self._pipeline.ending
        # Also if that job has just failed, and waits for this one to give the engine back.
        self._before = ending if ending and not ending.has_left else None
        if self._before is not None:  # these seconds count for that job
            busy = ExitStack()
            busy.enter_context(self.stopwatch.engine_busy())
            self._before.closed.add_done_callback(lambda _: busy.close())

    def leave(self) -> None:
        """The job has ended."""
        self._close(well=True)
        self.has_left = True
        self._release()
        self._before = None  # or each job would keep the one before in memory

    def _close(self, *, well: bool) -> None:
        if not self.closed.done():
            self.closed.set_result(well)

    def _release(self) -> None:
        if self._holds:
            self._holds = False
            self._pipeline.engine.release()


class Pipeline:
    """Gives the engine to the jobs in the order in which they ask.

    Attributes:
        engine: held by the job that may send requests.
        ending: the job that has passed the engine on last.
    """

    def __init__(self) -> None:
        self.engine = asyncio.Lock()
        self.ending: Slot | None = None

    @asynccontextmanager
    async def slot(self, stopwatch: Stopwatch) -> AsyncIterator[Slot]:
        """Wait for the engine; the body may use it.

        Raises:
            JobTimeout: the deadline passed before.
        """
        slot = Slot(self, stopwatch)
        try:
            await slot.take()
            yield slot
        finally:
            slot.leave()
