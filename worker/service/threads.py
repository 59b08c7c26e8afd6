"""Work of jobs in threads, for which a job waits until its deadline and no longer.

A thread cannot be stopped from outside. One that reads a volume which does not answer stays, and so
does each of the next job: such a worker is of no use, and is to be replaced.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from worker.exhaustion import is_exhaustion
from worker.stopwatch import Stopwatch

_T = TypeVar("_T")

_MOST = 64  # threads of each kind; one is started only when all others are busy
# Seconds after the end of its job. A download ends within a few; on a slow volume the hash of a
# large file takes a minute.
_HANGS_AFTER = 180.0
_MOST_HANGING = 4


def run_loop(main: Coroutine[Any, Any, _T]) -> _T:
    """As `asyncio.run`, but what `main` returns counts in any case.

    At its end, asyncio starts a thread that waits for the others; an exhausted machine has none.
    """
    results: list[_T] = []

    async def kept() -> None:
        results.append(await main)

    try:
        asyncio.run(kept())
    except RuntimeError as error:
        if not results or not is_exhaustion(error):
            raise
    return results[0]


def use_more() -> None:
    """Give the running loop threads enough for all jobs whose hosts are slow, and for the engine.

    Python's own limit is the number of cores and 4: some uploads would let the engine wait.
    """
    threads = ThreadPoolExecutor(_MOST, thread_name_prefix="worker")
    asyncio.get_running_loop().set_default_executor(threads)


class Threads:
    """The threads in which one worker's jobs read files. Only for its event loop.

    They are not those of the event loop itself, in which the engine is called: it must go on when
    all of these hang.

    Args:
        clock: returns seconds; tests pass their own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pool = ThreadPoolExecutor(_MOST, thread_name_prefix="files")
        self._left: dict[asyncio.Future[Any], float] = {}  # and when its job ended

    def are_hanging(self) -> bool:
        """Whether several threads still run long after their jobs have ended."""
        since = self._clock() - _HANGS_AFTER
        return sum(ended <= since for ended in self._left.values()) >= _MOST_HANGING

    async def run(
        self,
        stopwatch: Stopwatch,
        work: Callable[..., _T],
        *arguments: Any,  # noqa: ANN401 - those of `work`
        late: str = "the files of models and templates were not read",
    ) -> _T:
        """The result of work that reads files, which may be on a volume that does not answer.

        Raises:
            JobTimeout: it was not done at the deadline; `late` is its message.
        """
        if stopwatch.left():
            working = self._start(lambda: work(*arguments))
            if await is_done_in_time(working, stopwatch, lambda: self._leave(working)):
                return working.result()
        hint = "Send the job again; if this happens often, the volume does not answer."
        raise stopwatch.expired(late, hint=hint)

    async def run_or_stop(
        self,
        stopwatch: Stopwatch,
        work: Callable[[threading.Event], _T],
        undo: Callable[[_T], None] = lambda _: None,
    ) -> _T | None:
        """The result of work that can be stopped, or None at the job's deadline.

        At the deadline, and when the job is cancelled, the event that `work` got is set; what it
        returns after that goes to `undo`.
        """
        if not stopwatch.left():
            return None
        stop = threading.Event()
        working = self._start(lambda: work(stop))

        def undo_late(done: asyncio.Future[_T]) -> None:
            if not done.cancelled() and done.exception() is None:
                undo(done.result())

        def give_up() -> None:
            stop.set()
            working.add_done_callback(undo_late)
            self._leave(working)

        return working.result() if await is_done_in_time(working, stopwatch, give_up) else None

    def _start(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        run = copy_context().run  # the job's id for the log, and its listener for the progress
        return asyncio.get_running_loop().run_in_executor(self._pool, run, work)

    def _leave(self, working: asyncio.Future[Any]) -> None:
        self._left[working] = self._clock()
        working.add_done_callback(self._ended)

    def _ended(self, working: asyncio.Future[Any]) -> None:
        del self._left[working]
        if not working.cancelled():
            working.exception()  # or asyncio logs that nobody has read it


async def is_done_in_time(
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
