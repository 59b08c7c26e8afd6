"""Serves a worker's jobs: takes them from RunPod, runs them, posts their results, stops them.

This replaces the SDK's JobScaler, which loses jobs and results in several cases;
docs/internals/runpod-sdk.md lists them. This module knows RunPod's routes, but not the SDK:
`runpod_sdk` connects the two.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp

from worker import log
from worker.errors import InternalError
from worker.http.backoff import Backoff, retry_after
from worker.runpod.poller import JobPoller, PollFailed, RunPodJob
from worker.runpod.results import ResultPoster, result_body, short_error
from worker.runpod.timing import TIMING, TransportTiming

logger = logging.getLogger(__name__)

REMEMBERED_JOBS = 1000  # finished jobs; a stop signal for one of them is late, not early

JobHandler = Callable[[RunPodJob], Awaitable[Any]]


class RunningJobs(Protocol):
    """The SDK's list of running jobs; its pings report them."""

    def add(self, element: str) -> object:
        """Call it when a job begins."""

    def remove(self, element: str) -> object:
        """Call it when the job is over."""


@dataclass(frozen=True)
class Routes:
    """RunPod's URLs, each with its query; `$ID` in `done` stands for the job's id.

    Attributes:
        headers: for every call; they hold the key.
        stream: for the chunks of jobs that stream, as `done`; None: not known.
    """

    take: str
    done: str
    headers: dict[str, str] = field(repr=False)
    stream: str | None = None

    @property
    def stop(self) -> str | None:
        """The URL of stop signals; None if it cannot be derived."""
        has_name = "/job-take/" in self.take
        return self.take.replace("/job-take/", "/job-stop/") if has_name else None


@dataclass
class _Running:
    """A job.

    Attributes:
        step: its current part: first the handler's work, then the post.
        worked: done when the next job may be taken: the handler has said so, or has ended.
    """

    step: asyncio.Future[Any]
    worked: asyncio.Future[None]
    is_stopped: bool = False


class Transport:
    """Serves one worker's jobs, up to `concurrency` of them at once.

    While a job's pictures are delivered and its result is posted, the next job is taken and run; so
    there are at most twice as many jobs in memory.

    Attributes:
        poster: posts results and progress; None unless `serve` runs.
    """

    def __init__(
        self,
        routes: Routes,
        handler: JobHandler,
        running_jobs: RunningJobs,
        *,
        concurrency: int = 1,
        timing: TransportTiming = TIMING,
    ) -> None:
        self.poster: ResultPoster | None = None
        self._routes = routes
        self._handler = handler
        self._running_jobs = running_jobs
        self._concurrency = concurrency
        self._timing = timing
        self._jobs: dict[str, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._posts: set[asyncio.Future[Any]] = set()
        self._retires = False
        self._has_all_jobs = asyncio.Event()  # no further job comes
        self._repeated: dict[str, RunPodJob] = {}  # they begin when their stopped runs have ended
        self._early_stops: dict[str, float] = {}  # job id -> when its stop signal came
        self._finished: deque[str] = deque(maxlen=REMEMBERED_JOBS)

    async def serve(self) -> None:
        """Run jobs until SIGTERM, SIGINT or a result that retires the worker.

        Every job that was taken is finished and its result posted before this returns.
        """
        loop = asyncio.get_running_loop()
        self._ending: asyncio.Future[None] = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number.name)
        timing, headers = self._timing, self._routes.headers
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=timing.connect, sock_read=timing.hold
        )
        async with (
            aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
            JobPoller(self._routes.take, headers, timing) as poller,
        ):
            self.poster = ResultPoster(session, self._routes.done, timing, self._routes.stream)
            stops = asyncio.ensure_future(self._watch_stops(session))
            try:
                await self._take_jobs(poller)
            finally:
                self._has_all_jobs.set()
                while self._tasks:  # stop signals still apply to them
                    await asyncio.wait(self._tasks)
                stops.cancel()
                await asyncio.wait({stops})
                self.poster = None

    def _end(self, reason: str) -> None:
        if not self._ending.done():
            logger.info(
                "%s: this worker takes no more jobs; %d are still running", reason, len(self._tasks)
            )
            self._ending.set_result(None)

    async def _pause(self, seconds: float) -> None:
        """Sleep, at most until the end."""
        await asyncio.wait({self._ending}, timeout=max(0.0, seconds))

    # Take and run ------------------------------------------------------------------------------

    async def _take_jobs(self, poller: JobPoller) -> None:
        between = self._timing.between_takes
        back_off = Backoff(first=between, most=self._timing.longest_take_pause)
        while not self._ending.done():
            free = self._free()
            if free <= 0:
                either = {self._ending, *self._tasks, *self._working()}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                continue
            started = time.monotonic()
            try:
                # As the SDK, which takes no job before the last result is posted: RunPod may hold
                # this poll for long after that.
                busy = bool(self._working())
                jobs = await poller.take(free, busy=busy, ending=self._ending)
            except PollFailed as problem:
                pause = back_off.pause(problem.retry_after)
                if back_off.is_worth_a_line:
                    logger.warning(
                        "taking a job failed (%s; %d times in a row): next poll in %.1f s",
                        *(problem, back_off.failures, pause),
                    )
                await self._pause(pause)
                continue
            back_off.reset()
            for job in jobs:
                self._begin(job)
            if not jobs:
                await self._pause(started + between - time.monotonic())

    def _working(self) -> set[asyncio.Future[None]]:
        """Of each job whose handler has not ended, the future that is done then."""
        return {job.worked for job in self._jobs.values() if not job.worked.done()}

    def _free(self) -> int:
        """How many jobs may be taken now."""
        working, waiting = len(self._working()), len(self._repeated)
        most = 2 * self._concurrency - len(self._tasks)
        return min(self._concurrency - working, most) - waiting

    def take_next(self, job_id: str) -> None:
        """Another job may be taken: this one needs the engine no more. Call it in the loop."""
        running = self._jobs.get(job_id)
        if running and not running.worked.done():
            running.worked.set_result(None)

    def _begin(self, job: RunPodJob) -> None:
        job_id = job["id"]
        if self._was_stopped_early(job_id):
            logger.info("job %s was stopped before it began", job_id)
            return
        if running := self._jobs.get(job_id):
            if running.is_stopped:  # RunPod has ended it, and repeats it under its old id
                self._repeated[job_id] = job
            else:
                logger.warning("RunPod sent job %s twice; it runs once", job_id)
            return
        # The handler starts with the next step of the event loop, without any delay.
        work = asyncio.ensure_future(_call(self._handler, job))
        self._jobs[job_id] = _Running(work, asyncio.get_running_loop().create_future())
        task = asyncio.create_task(self._run(job_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, job_id: str) -> None:
        """Wait for the handler and post its result, unless the job is stopped meanwhile."""
        log.job_id.set(job_id)
        running = self._jobs[job_id]
        self._running_jobs.add(job_id)
        try:
            # `await` would end this task with the handler's exception or cancellation.
            await asyncio.wait({running.step})
            body = {} if running.is_stopped else _result_body(running.step)
            if body.pop("stopPod", False):
                self._retires = True
                self._end("the job's result retires this worker")
            self.take_next(job_id)
            if self._retires and await self._is_last():
                body["stopPod"] = True
            if running.is_stopped or self.poster is None:
                logger.info("job %s was stopped", job_id)
                return
            running.step = asyncio.ensure_future(self.poster.post_result(job_id, body))
            self._posts.add(running.step)
            await asyncio.wait({running.step})
            if not running.step.cancelled() and (error := running.step.exception()):
                logger.error("the result could not be posted", exc_info=error)
        finally:
            self._posts.discard(running.step)
            self._running_jobs.remove(job_id)
            self._finished.append(job_id)
            if self.poster:
                self.poster.forget(job_id)
            del self._jobs[job_id]
            if repeated := self._repeated.pop(job_id, None):
                self._begin(repeated)

    async def _is_last(self) -> bool:
        """Wait until a job's result may be the last one; returns whether it is.

        RunPod may end the worker when `stopPod` comes: no job may come or be posted after it.
        """
        await self._has_all_jobs.wait()
        while self._posts:
            await asyncio.wait(self._posts)
        running = sum(not job.is_stopped for job in self._jobs.values())
        return running + len(self._repeated) == 1

    # Stop --------------------------------------------------------------------------------------

    async def _watch_stops(self, session: aiohttp.ClientSession) -> None:
        url = self._routes.stop
        if url is None:
            logger.warning(
                "RUNPOD_WEBHOOK_GET_JOB has no /job-take/ in it, so stop signals cannot be"
                " received: cancelled jobs run to their end"
            )
            return
        between = self._timing.between_stops
        back_off = Backoff(first=between, most=self._timing.longest_stop_pause)
        while True:
            started = time.monotonic()
            try:
                job_ids = await _poll_stop_signals(session, url)
            except (PollFailed, aiohttp.ClientError, asyncio.TimeoutError, OSError) as problem:
                pause = back_off.pause(getattr(problem, "retry_after", None))
                if back_off.is_worth_a_line:
                    logger.info(
                        "asking for stop signals failed (%s; %d times in a row): next poll in"
                        " %.1f s",
                        *(type(problem).__name__, back_off.failures, pause),
                    )
                await asyncio.sleep(pause)
                continue
            back_off.reset()
            for job_id in job_ids:
                self._stop(job_id)
            if not job_ids:
                await asyncio.sleep(started + between - time.monotonic())

    def _stop(self, job_id: str) -> None:
        running = self._jobs.get(job_id)
        if self._repeated.pop(job_id, None):
            return
        if running is None:
            # The signal is late, or it came before its job and is kept until the job comes.
            if job_id not in self._finished:
                self._early_stops[job_id] = time.monotonic()
        elif not running.is_stopped:  # a second cancellation would interrupt the cleanup
            running.is_stopped = True
            running.step.cancel()

    def _was_stopped_early(self, job_id: str) -> bool:
        """Whether a stop signal for this job came before it; forgets old signals."""
        oldest = time.monotonic() - self._timing.early_stop
        self._early_stops = {
            stopped: since for stopped, since in self._early_stops.items() if since >= oldest
        }
        return self._early_stops.pop(job_id, None) is not None


async def _call(handler: JobHandler, job: RunPodJob) -> Any:  # noqa: ANN401 - whatever it returns
    return await handler(job)


async def _poll_stop_signals(session: aiohttp.ClientSession, url: str) -> list[str]:
    """The ids of the jobs to stop; RunPod holds the call until there is one.

    Raises:
        PollFailed: the answer is an error, or is not JSON.
    """
    async with session.get(url) as response:
        if response.status == 204:  # noqa: PLR2004 - HTTP's No Content
            return []
        if response.status != 200:  # noqa: PLR2004 - HTTP's OK
            raise PollFailed(f"HTTP {response.status}", retry_after(response.headers))
        try:
            answer = await response.json(content_type=None)
        except (ValueError, RecursionError) as error:
            raise PollFailed("the answer is not JSON") from error
    job_ids = answer.get("jobsToStop") if isinstance(answer, dict) else None
    if not isinstance(job_ids, list):
        return []
    return [job_id for job_id in job_ids if isinstance(job_id, str)]


def _result_body(finished: asyncio.Future[Any]) -> dict[str, Any]:
    """The body to post: a handler's answer, or our own error for its exception."""
    error = None if finished.cancelled() else finished.exception()
    if finished.cancelled() or error:
        problem = InternalError.with_id()
        logger.error("internal error %s", problem.details["id"], exc_info=error)
        return short_error(problem, {})
    return result_body(finished.result())
