"""The way of jobs between RunPod and the handler: take, run, stop, post, end.

It does what the SDK's JobScaler does, without what that loses; docs/modules/runpod-sdk.md says
what that is. It knows RunPod's routes, but not the SDK: `runpod_sdk` puts the two together.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp

from worker import log
from worker.errors import InternalError
from worker.http.backoff import Backoff, retry_after
from worker.runpod.poller import CONNECT, HOLD, Job, JobPoller, TakeFailed
from worker.runpod.results import PATIENCE, Poster, in_short

logger = logging.getLogger("worker.runpod")

TAKE_AGAIN = 5.0  # seconds: the longest pause after a poll that failed; FlashBoot's 400 is usual
FLOOR = 0.2  # seconds: the least from one poll that brought nothing to the next
STOP_FLOOR = 1.0  # seconds, the same for stop signals; the SDK's
EARLY_STOPS = 30.0  # seconds for which a stop waits for its job
REMEMBERED = 1000  # jobs; a stop for one of them is late, not early

JobHandler = Callable[[Job], Awaitable[Any]]


class Tracker(Protocol):
    """Who is told which jobs run: the SDK's pings name them."""

    def add(self, element: str) -> object:
        """A job begins."""

    def remove(self, element: str) -> object:
        """It is over."""


@dataclass(frozen=True)
class Routes:
    """RunPod's, each with its query; `$ID` in `done` stands for the job's id.

    Attributes:
        headers: for every call; they hold the key.
    """

    take: str
    done: str
    headers: dict[str, str] = field(repr=False)

    @property
    def stop(self) -> str | None:
        """Where stop signals come from; None if it cannot be derived."""
        named = "/job-take/" in self.take
        return self.take.replace("/job-take/", "/job-stop/") if named else None


@dataclass
class _Running:
    """A job; `step` is what it does now: the handler's work, then the post."""

    step: asyncio.Future[Any]
    stopped: bool = False


class Transport:
    """Serves one worker's jobs, up to `concurrency` of them at once.

    Attributes:
        poster: what results and progress go through; there while `serve` runs.
    """

    def __init__(
        self,
        routes: Routes,
        handler: JobHandler,
        tracker: Tracker,
        *,
        concurrency: int = 1,
        patience: float = PATIENCE,
        hold: float = HOLD,
    ) -> None:
        self.poster: Poster | None = None
        self._routes = routes
        self._handler = handler
        self._tracker = tracker
        self._concurrency = concurrency
        self._patience = patience
        self._hold = hold
        self._jobs: dict[str, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._early: dict[str, float] = {}  # stops for jobs that are not here yet, and since when
        self._known: deque[str] = deque(maxlen=REMEMBERED)

    async def serve(self) -> None:
        """Run jobs until SIGTERM, SIGINT or a result that retires the worker.

        Whatever was taken is run to its end and posted before this returns.
        """
        loop = asyncio.get_running_loop()
        self._ending: asyncio.Future[None] = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number.name)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=self._hold)
        async with (
            aiohttp.ClientSession(headers=self._routes.headers, timeout=timeout) as session,
            JobPoller(self._routes.take, self._routes.headers, hold=self._hold) as line,
        ):
            self.poster = Poster(session, self._routes.done, patience=self._patience)
            stops = asyncio.ensure_future(self._watch_stops(session))
            try:
                await self._take_jobs(line)
            finally:
                while self._tasks:  # stop signals still count for them
                    await asyncio.wait(self._tasks)
                stops.cancel()
                await asyncio.wait({stops})
                self.poster = None

    def _end(self, why: str) -> None:
        if not self._ending.done():
            logger.info("%s: no further jobs; %d to finish", why, len(self._tasks))
            self._ending.set_result(None)

    async def _rest(self, seconds: float) -> None:
        """Sleep, but not into the end."""
        await asyncio.wait({self._ending}, timeout=max(0.0, seconds))

    # Taking and running ------------------------------------------------------------------------

    async def _take_jobs(self, line: JobPoller) -> None:
        backoff = Backoff(most=TAKE_AGAIN)
        while not self._ending.done():
            free = self._concurrency - len(self._tasks)
            if free <= 0:
                await asyncio.wait(
                    {self._ending, *self._tasks}, return_when=asyncio.FIRST_COMPLETED
                )
                continue
            asked = time.monotonic()
            try:
                jobs = await line.take(free, busy=bool(self._tasks), ending=self._ending)
            except TakeFailed as problem:
                pause = backoff.pause(problem.retry_after)
                logger.warning("no job could be taken (%s): again in %.1f s", problem, pause)
                await self._rest(pause)
                continue
            backoff.reset()
            for job in jobs:
                self._begin(job)
            if not jobs:
                await self._rest(asked + FLOOR - time.monotonic())

    def _begin(self, job: Job) -> None:
        job_id = job["id"]
        if self._came_early(job_id):
            logger.info("job %s was stopped before it began", job_id)
            return
        if job_id in self._jobs:
            logger.warning("job %s was given out twice; it runs once", job_id)
            return
        # The handler starts with the loop's next step: nothing lies between take and start.
        self._jobs[job_id] = _Running(asyncio.ensure_future(_call(self._handler, job)))
        task = asyncio.create_task(self._run(job_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, job_id: str) -> None:
        """Wait for the handler and post what it says, unless the job is stopped meanwhile."""
        log.job_id.set(job_id)
        running = self._jobs[job_id]
        self._tracker.add(job_id)
        try:
            # Not `await`: neither the handler's exception nor its cancellation may end this task.
            await asyncio.wait({running.step})
            if running.stopped or self.poster is None:
                logger.info("job %s was stopped", job_id)
                return
            verdict = _verdict(running.step)
            if verdict.get("stopPod"):
                self._end("the job's result retires this worker")
            running.step = asyncio.ensure_future(self.poster.result(job_id, verdict))
            await asyncio.wait({running.step})
        finally:
            self._tracker.remove(job_id)
            self._known.append(job_id)
            del self._jobs[job_id]

    # Stopping ----------------------------------------------------------------------------------

    async def _watch_stops(self, session: aiohttp.ClientSession) -> None:
        url = self._routes.stop
        if url is None:
            logger.warning("RunPod's route for stop signals is unknown: cancelling has no effect")
            return
        backoff = Backoff(first=STOP_FLOOR, most=30.0)
        while True:
            asked = time.monotonic()
            try:
                stopped = await _stop_signals(session, url)
            except (TakeFailed, aiohttp.ClientError, asyncio.TimeoutError, OSError) as problem:
                pause = backoff.pause(getattr(problem, "retry_after", None))
                logger.info("no stop signals (%s): again in %.1f s", type(problem).__name__, pause)
                await asyncio.sleep(pause)
                continue
            backoff.reset()
            for job_id in stopped:
                self._stop(job_id)
            if not stopped:
                await asyncio.sleep(asked + STOP_FLOOR - time.monotonic())

    def _stop(self, job_id: str) -> None:
        running = self._jobs.get(job_id)
        if running is None:
            # Late, or the job is still on its way to us: then the stop must wait for it.
            if job_id not in self._known:
                self._early[job_id] = time.monotonic()
        elif not running.stopped:  # a second cancellation would disturb the cleaning up
            running.stopped = True
            running.step.cancel()

    def _came_early(self, job_id: str) -> bool:
        """Whether this job was stopped already; old stops are forgotten."""
        oldest = time.monotonic() - EARLY_STOPS
        self._early = {one: since for one, since in self._early.items() if since >= oldest}
        return self._early.pop(job_id, None) is not None


async def _call(handler: JobHandler, job: Job) -> Any:  # noqa: ANN401 - whatever it returns
    return await handler(job)


async def _stop_signals(session: aiohttp.ClientSession, url: str) -> list[str]:
    """The ids that RunPod wants stopped; the call is held until there are some.

    Raises:
        TakeFailed: the answer is an error, or not one.
    """
    async with session.get(url) as response:
        if response.status == 204:  # noqa: PLR2004 - HTTP's No Content
            return []
        if response.status != 200:  # noqa: PLR2004 - HTTP's OK
            raise TakeFailed(f"HTTP {response.status}", retry_after(response.headers))
        try:
            found = await response.json(content_type=None)
        except (ValueError, RecursionError) as error:
            raise TakeFailed("the answer is no JSON") from error
    wanted = found.get("jobsToStop") if isinstance(found, dict) else None
    return [one for one in wanted if isinstance(one, str)] if isinstance(wanted, list) else []


def _verdict(done: asyncio.Future[Any]) -> dict[str, Any]:
    """What RunPod is told: the SDK's rules for a handler's answer, and none for its failure."""
    error = None if done.cancelled() else done.exception()
    if done.cancelled() or error:
        problem = InternalError.with_id()
        logger.error("internal error %s", problem.details["id"], exc_info=error)
        return in_short(problem, {})
    answer = done.result()
    if not isinstance(answer, Mapping):
        return {"output": answer}
    output = {key: answer[key] for key in answer if key not in {"error", "refresh_worker"}}
    verdict: dict[str, Any] = {"output": output} if output else {}
    if answer.get("error"):
        verdict["error"] = str(answer["error"])  # anything else would be a success
    if answer.get("refresh_worker"):
        verdict["stopPod"] = True
    return verdict
