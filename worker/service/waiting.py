"""Waiting no longer than a job may take: for work of another thread, and for the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from worker.stopwatch import Stopwatch


async def is_done_in_time(
    future: asyncio.Future[Any], stopwatch: Stopwatch, give_up: Callable[[], None]
) -> bool:
    """Wait for the future; whether it is done before the job's deadline.

    `give_up` is called when it is not, and when the job is cancelled meanwhile.
    """
    try:
        await asyncio.wait({future}, timeout=stopwatch.left())
    except asyncio.CancelledError:
        give_up()
        raise
    if not future.done():
        give_up()
        return False
    return True


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
                if not turn.cancel():  # it was this job's turn in the same moment
                    self._engine.release()

            if not await is_done_in_time(turn, stopwatch, give_up):
                raise stopwatch.expired("the engine was busy with other jobs; no picture")
        try:
            yield
        finally:
            self._engine.release()
