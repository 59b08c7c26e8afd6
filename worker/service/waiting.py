"""Waits that end at a job's deadline: for work in a thread, and for the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from worker.stopwatch import Stopwatch
from worker.webui.pipeline import NextJob

T = TypeVar("T")
U = TypeVar("U")

_MOST_UNDELIVERED = 4  # inputs of a batch whose pictures are in memory at the same time
_THREADS = 64  # at most; one is started only when all others are busy
_BUSY = "the engine was busy with other jobs; no result"


def use_more_threads() -> None:
    """Give the running loop threads enough for all jobs whose hosts are slow, and for the engine.

    Python's own limit is the number of cores and 4: some uploads would let the engine wait.
    """
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="worker")
    asyncio.get_running_loop().set_default_executor(threads)


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

            if not await _is_done_in_time(turn, stopwatch, give_up):
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
                if not await _is_done_in_time(self._came, stopwatch, lambda: None):
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
