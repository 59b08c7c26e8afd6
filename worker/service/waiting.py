"""Waits of jobs for each other and for the engine, which end at a job's deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from worker.service.threads import is_done_in_time
from worker.stopwatch import Stopwatch
from worker.webui.pipeline import NextJob

T = TypeVar("T")
U = TypeVar("U")

_MOST_UNDELIVERED = 4  # inputs of a batch whose pictures are in memory at the same time
_BUSY = "the engine was busy with other jobs; no result"


async def together(
    first: Coroutine[Any, Any, T], second: Coroutine[Any, Any, U], undo: Callable[[T], None]
) -> tuple[T, U]:
    """Run both at the same time; the failure of one ends the other.

    `undo` gets the first one's result if it is not returned. Both must end when they are cancelled.
    """
    one, other = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        await asyncio.wait({one, other}, return_when=asyncio.FIRST_EXCEPTION)
        for failed in (task for task in (other, one) if task.done()):
            failed.result()
        return one.result(), other.result()
    except BaseException:
        one.cancel()
        other.cancel()
        await asyncio.wait({one, other})
        if not one.cancelled() and not one.exception():
            undo(one.result())
        if not other.cancelled():
            other.exception()  # or asyncio logs that it was never retrieved
        raise


class Turns:
    """Gives the engine to one job after the other, in the order of their requests."""

    def __init__(self) -> None:
        self._engine = asyncio.Lock()
        self._waiting = 0
        self._someone_waits = asyncio.Event()

    @asynccontextmanager
    async def next(self, stopwatch: Stopwatch, _checkpoint: str = "") -> AsyncIterator[NextJob]:
        """Wait for the jobs before this one; the engine is this job's while the body runs.

        Yields:
            The job that waits then; the body may let it start before it ends itself.

        Raises:
            JobTimeout: the deadline passed while other jobs had the engine.
        """
        with stopwatch.phase("queue"), self._counted():
            turn = asyncio.ensure_future(self._engine.acquire())

            def give_up() -> None:
                if not turn.cancel():  # this job got its turn at the same moment
                    self._engine.release()

            if not await is_done_in_time(turn, stopwatch, give_up):
                raise stopwatch.expired(_BUSY)
        has_turn = True

        def may_start() -> None:
            nonlocal has_turn
            if has_turn:
                has_turn = False
                self._engine.release()

        try:
            yield NextJob(self._someone_waits.wait, may_start)
        finally:
            may_start()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._waiting += 1
        self._someone_waits.set()
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._someone_waits.clear()


class BatchTurn:
    """The turn of one input of a batch: it comes when all inputs of the batch are prepared.

    Attributes:
        checkpoint: what the engine must have loaded; empty for a task that needs none.
        asked: done when the input needs the engine now, or has ended without it.
        over: set when the input does not need the engine any more.
        ended: done when the input has its answer; until then it may hold pictures.
    """

    def __init__(self) -> None:
        self.checkpoint = ""
        self.over = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.asked: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._came: asyncio.Future[None] = loop.create_future()

    @asynccontextmanager
    async def next(self, stopwatch: Stopwatch, checkpoint: str = "") -> AsyncIterator[NextJob]:
        """Wait for this turn; the engine is this input's while the body runs.

        Yields:
            The next input of the batch, or the job after the batch.

        Raises:
            JobTimeout: the deadline passed before.
        """
        self.checkpoint = checkpoint
        self._ask()
        try:
            with stopwatch.phase("queue"):
                if not await is_done_in_time(self._came, stopwatch, lambda: None):
                    raise stopwatch.expired(_BUSY)
            yield NextJob(_at_once, self.over.set)
        finally:
            self.over.set()

    def end(self) -> None:
        """The input has ended, perhaps without the engine."""
        self._ask()
        self.over.set()
        self.ended.set_result(None)

    def _ask(self) -> None:
        if not self.asked.done():
            self.asked.set_result(None)

    async def use(self) -> None:
        """Let the input use the engine, and wait until it is done; at once if it has ended."""
        self._came.set_result(None)
        await self.over.wait()


async def give_turns(
    turns: Sequence[BatchTurn],
    engine: Turns | BatchTurn,
    stopwatch: Stopwatch,
    loaded: Callable[[], str],
) -> None:
    """Give each input its turn: sorted by checkpoint, the one that is `loaded` at that time first.

    It begins when all inputs have asked, or when half of the time has passed: one slow download
    must not cost the other inputs their pictures. Inputs that ask later get their turns afterwards.
    While `_MOST_UNDELIVERED` inputs wait for their delivery, no further one is drawn.

    Raises:
        JobTimeout: other jobs had the engine until the deadline.
    """
    left, used = list(turns), list[BatchTurn]()
    while left:
        asked = [turn.asked for turn in left]
        await asyncio.wait(asked, timeout=stopwatch.left() / 2)
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)  # no loop without a pause
        ready = [turn for turn in left if turn.asked.done()]
        left = [turn for turn in left if turn not in ready]
        async with engine.next(stopwatch):
            first = loaded()
            for turn in sorted(ready, key=lambda one: (one.checkpoint != first, one.checkpoint)):
                await turn.use()
                used.append(turn)
                await _few_undelivered(used)


async def _at_once() -> None:
    """Whether another input or job waits need not be known."""


async def _few_undelivered(used: Sequence[BatchTurn]) -> None:
    """Wait until the pictures of few inputs are in memory, however slow their uploads are."""
    while len(holding := [one.ended for one in used if not one.ended.done()]) >= _MOST_UNDELIVERED:
        await asyncio.wait(holding, return_when=asyncio.FIRST_COMPLETED)
