"""Waits that end at a job's deadline: for work in a thread, and for the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from worker.stopwatch import Stopwatch

T = TypeVar("T")


async def in_thread(
    work: Callable[[threading.Event], T], stopwatch: Stopwatch, undo: Callable[[T], None]
) -> T | None:
    """Run the work in a thread; returns its result, or None at the job's deadline.

    At the deadline, and when the job is cancelled, the event that `work` got is set; what it
    returns after that goes to `undo`.
    """
    stop = threading.Event()
    working = asyncio.ensure_future(asyncio.to_thread(work, stop))

    def undo_late(done: asyncio.Future[T]) -> None:
        if not done.cancelled() and done.exception() is None:
            undo(done.result())

    def give_up() -> None:
        stop.set()
        working.add_done_callback(undo_late)

    return working.result() if await _is_done_in_time(working, stopwatch, give_up) else None


class Turns:
    """Gives the engine to one job after the other, in the order of their requests."""

    def __init__(self) -> None:
        self._engine = asyncio.Lock()

    @asynccontextmanager
    async def next(self, stopwatch: Stopwatch) -> AsyncIterator[None]:
        """Wait for the jobs before this one; the engine is this job's while the body runs.

        Raises:
            JobTimeout: the deadline passed while other jobs had the engine.
        """
        with stopwatch.phase("queue"):
            turn = asyncio.ensure_future(self._engine.acquire())

            def give_up() -> None:
                if not turn.cancel():  # this job got its turn at the same moment
                    self._engine.release()

            if not await _is_done_in_time(turn, stopwatch, give_up):
                raise stopwatch.expired("the engine was busy with other jobs; no result")
        try:
            yield
        finally:
            self._engine.release()


async def _is_done_in_time(
    future: asyncio.Future[Any], stopwatch: Stopwatch, give_up: Callable[[], None]
) -> bool:
    """Wait until the future is done or the deadline has passed.

    `give_up` is called at the deadline, and when the job is cancelled.
    """
    try:
        await asyncio.wait({future}, timeout=stopwatch.left())
    except asyncio.CancelledError:
        give_up()
        raise
    if not future.done():
        give_up()
    return future.done()
