"""The back for the worker in this process: a queue with RunPod's states, in memory."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from gateway.jobs import (
    FINAL,
    JobState,
    NoSuchJob,
    NotPossible,
    NotTaking,
    Streamed,
    TooManyJobs,
)
from gateway.local.job import LIMITS, Clock, Json, Later, Limits, LocalJob
from gateway.local.policy import read_policy
from gateway.local.stream import Chunks, memory_of
from gateway.local.webhooks import Webhooks
from worker.errors import InternalError, JobTimeout, WorkerError
from worker.runpod.results import result_body, short_error
from worker.service.stream import PostChunk

logger = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
# Told of each job that ends without the handler's answer: its id, its input, its final status and
# the code of the error, or "".
Aborted = Callable[[str, Json, str, str], object]


class LocalJobs:
    """Runs jobs with the handler, in the order in which they came. For one event loop.

    Args:
        handler: gets `{"id", "input", ...}`, returns the answer; raises only when it is cancelled.
        concurrency: jobs that the handler gets at once.
        is_quick: whether an input is answered beside the jobs that draw, such as a list.
        aborted: see `Aborted`; called before a handler that runs is cancelled.
        later: calls a function after so many seconds; by default the event loop's.

    Attributes:
        ended: number of jobs since the start, by their final status.
        retiring: set when a job's answer asks for a new worker.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        concurrency: int = 1,
        is_quick: Callable[[Json], bool] = lambda _input: False,
        webhooks: Webhooks | None = None,
        aborted: Aborted = lambda *_: None,
        limits: Limits = LIMITS,
        clock: Clock = time.monotonic,
        later: Later | None = None,
    ) -> None:
        self.ended: Counter[str] = Counter()
        self.retried = 0
        self.retiring = asyncio.Event()
        self._handler = handler
        self._is_quick = is_quick
        self._webhooks = webhooks or Webhooks()
        self._aborted = aborted
        self._limits = limits
        self._clock = clock
        self._later = later or asyncio.get_running_loop().call_later
        self._jobs: dict[str, LocalJob] = {}
        self._slots = asyncio.Semaphore(concurrency)
        self._ready = asyncio.Event()
        self._why_closed: WorkerError | None = None
        self._closed_at = 0.0

    # For the server ------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether jobs run; before that they wait."""
        return self._ready.is_set() and not self.is_ending

    @property
    def is_ending(self) -> bool:
        """Whether no more jobs are taken."""
        return self._why_closed is not None

    def begin(self) -> None:
        """The engine is ready: run the jobs."""
        self._ready.set()

    def queue(self) -> dict[str, Any]:
        """The fields of a `worker.service.report.Queue`."""
        came, now = [job.came for job in self._waiting()], self._clock()
        return {"waiting": len(came), "oldest_seconds": round(now - min(came, default=now), 3)}

    async def report(self, job: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """Take a progress report; the handler's `post_progress`."""
        found = self._jobs.get(str(job["id"]))
        if found and found.status == "IN_PROGRESS":
            found.output = dict(report)
            self._tell(found)

    def stream_of(self, job: Mapping[str, Any]) -> PostChunk | None:
        """What takes the chunks of this job; the handler's `stream_of`."""
        found = self._jobs.get(str(job["id"]))
        return functools.partial(self._add_chunk, found) if found else None

    async def _add_chunk(self, job: LocalJob, chunk: Mapping[str, Any], *, again: bool) -> bool:
        """Keep it until it is read; `again` has no meaning where nothing can get lost."""
        del again
        if job.status != "IN_PROGRESS":
            return False
        is_kept = job.chunks.add(dict(chunk), self._limits.kept_bytes)
        job.tell_news()
        return is_kept

    async def end(self, reason: WorkerError, grace: float) -> None:
        """Take no more jobs and end those that wait, with this reason.

        Those that run may end within `grace` seconds; then they fail with the reason, too.
        """
        self._why_closed, self._closed_at = reason, self._clock()
        for job in self._waiting():
            self._abort(job, "FAILED", reason)
        running = {job.work for job in self._jobs.values() if job.work and not job.work.done()}
        if running:
            await asyncio.wait(running, timeout=grace)
        for job in list(self._jobs.values()):
            self._abort(job, "FAILED", reason)

    async def read(self, patience: float) -> None:
        """Wait, at most so many seconds, until the newest answers were fetched or posted."""
        newest, began = self._closed_at - patience, self._clock()
        unread = [job for job in self._ended() if not job.read.is_set()]
        waits = {
            asyncio.ensure_future(job.read.wait()) for job in unread if (job.ended or 0) >= newest
        }
        if waits:
            _, late = await asyncio.wait(waits, timeout=patience)
            for wait in late:
                wait.cancel()
        await self._webhooks.sent(max(0.0, began + patience - self._clock()))

    # The protocol --------------------------------------------------------------------------------

    async def submit(self, request: Mapping[str, Any]) -> JobState:
        """Queue a job."""
        self._check_open()
        job = LocalJob(
            request,
            read_policy(request),
            self._webhooks.check(request.get("webhook")),
            self._clock(),
            self._limits.kept_seconds,
            size=memory_of(request),
        )
        self._check_room(job.size)
        self._forget_old()
        self._jobs[job.id] = job
        self._queue(job)
        return job.state(self._clock())

    async def state(self, job_id: str) -> JobState:
        """The job now."""
        job = self._find(job_id)
        return self._shown(job)

    async def follow(self, job_id: str) -> AsyncGenerator[JobState, None]:
        """The job now, then each change of it."""
        job = self._find(job_id)
        while True:
            changed, state = job.changed, self._shown(job)
            yield state  # the job may end before the next line
            if state.is_final:
                return
            await changed.wait()

    async def stream(self, job_id: str, hold: float) -> Streamed:
        """What the job has sent to its stream since the last call."""
        job = self._find(job_id)
        clock = asyncio.get_running_loop().time
        until = clock() + hold
        # Another reader may take the chunk that wakes this one.
        while not (job.chunks or job.status in FINAL) and clock() < until:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(job.news.wait(), until - clock())
        # Nothing is awaited from here on: a call that is cancelled takes no chunk.
        chunks = job.chunks.take()
        if job.chunks:  # npm's runpod-sdk reads no further when the job has ended
            return Streamed(replace(job.state(self._clock()), status="IN_PROGRESS"), chunks)
        return Streamed(self._shown(job), chunks)

    async def cancel(self, job_id: str) -> JobState:
        """Cancel the job; a handler that runs it stops the engine."""
        job = self._find(job_id)
        self._abort(job, "CANCELLED", None)
        return self._shown(job)

    async def purge(self) -> int:
        """Cancel all jobs that wait."""
        waiting = self._waiting()
        for job in waiting:
            await self.cancel(job.id)
        return len(waiting)

    async def retry(self, job_id: str) -> JobState:
        """Queue a job again that has failed or timed out, under the same id."""
        self._check_open()
        job = self._find(job_id)
        if job.status not in {"FAILED", "TIMED_OUT"}:
            raise NotPossible(
                f"Job {job.id} is {job.status}: only FAILED and TIMED_OUT jobs can be retried."
            )
        self.retried += 1
        job.status, job.output, job.error = "IN_QUEUE", None, None
        job.came, job.began, job.ended = self._clock(), None, None
        job.size, job.kept = memory_of(job.request), self._limits.kept_seconds
        job.read, job.chunks = asyncio.Event(), Chunks()
        self._queue(job)
        return job.state(self._clock())

    def answered(self, job_id: str) -> None:
        """A waiting request got the job's end: its answer is kept only for a short time."""
        if job := self._jobs.get(job_id):
            job.kept = self._limits.kept_seconds_answered

    async def health(self) -> dict[str, Any]:
        """Numbers of jobs and workers, as RunPod's /health has them."""
        now = Counter(job.status for job in self._jobs.values())
        workers = dict.fromkeys(
            ("idle", "initializing", "ready", "running", "throttled", "unhealthy"), 0
        )
        is_busy = now["IN_PROGRESS"] > 0
        workers["running" if is_busy else "idle" if self._ready.is_set() else "initializing"] = 1
        workers["ready"] = int(self.is_ready)
        return {
            "jobs": {
                "completed": self.ended["COMPLETED"],
                "failed": self.ended["FAILED"] + self.ended["TIMED_OUT"],
                "inProgress": now["IN_PROGRESS"],
                "inQueue": now["IN_QUEUE"],
                "retried": self.retried,
            },
            "workers": workers,
        }

    async def is_awake(self) -> bool:
        """Whether the engine is ready."""
        return self.is_ready

    # One job -------------------------------------------------------------------------------------

    def _queue(self, job: LocalJob) -> None:
        if job.policy.ttl is not None:
            job.timers.append(self._later(job.policy.ttl, lambda: self._outlived(job)))
        job.work = asyncio.create_task(self._run(job))
        job.work.add_done_callback(job.has_worked)

    async def _run(self, job: LocalJob) -> None:
        await self._ready.wait()
        if self._is_quick(job.request.get("input")):
            await self._work(job)
            return
        async with self._slots:
            await self._work(job)

    async def _work(self, job: LocalJob) -> None:
        if job.status != "IN_QUEUE" or self.retiring.is_set():
            return
        job.status, job.began = "IN_PROGRESS", self._clock()
        if job.policy.execution is not None:
            job.timers.append(self._later(job.policy.execution, lambda: self._took_too_long(job)))
        self._tell(job)
        work = asyncio.current_task()
        try:
            body = result_body(await self._handler({**job.request, "id": job.id}))
        except Exception as error:
            problem = InternalError.with_id()
            logger.exception("internal error %s", problem.details["id"], exc_info=error)
            body = short_error(problem, {})
        status = "FAILED" if "error" in body else "COMPLETED"
        if job.work is work:  # else it has ended, and was queued again
            self._close(job, status, body.get("output"), body.get("error"))
        if body.get("stopPod"):
            self.retiring.set()

    def _took_too_long(self, job: LocalJob) -> None:
        name, seconds = "policy.executionTimeout", f"{job.policy.execution:g} s"
        problem = JobTimeout(f"the job took longer than {name}, {seconds}.", hint=f"Raise {name}.")
        self._abort(job, "TIMED_OUT", problem)

    def _outlived(self, job: LocalJob) -> None:
        """RunPod deletes a job whose ttl has ended, whatever its state."""
        problem = JobTimeout(f"policy.ttl, {job.policy.ttl:g} s, has passed.", hint="Raise it.")
        self._abort(job, "TIMED_OUT", problem)
        self._jobs.pop(job.id, None)

    def _abort(self, job: LocalJob, status: str, reason: WorkerError | None) -> None:
        """End a job that waits or runs without the handler's answer."""
        if job.status in FINAL:
            return
        body = short_error(reason, {}) if reason else {}
        code = reason.code if reason else ""
        self._aborted(job.id, job.request.get("input"), status, code)
        self._close(job, status, body.get("output"), body.get("error"))
        if job.work:
            job.work.cancel()

    def _close(self, job: LocalJob, status: str, output: Json, error: str | None) -> None:
        if job.status in FINAL:
            return
        job.status, job.output, job.error, job.ended = status, output, error, self._clock()
        for timer in job.timers:
            timer.cancel()
        job.timers.clear()
        if status in {"COMPLETED", "CANCELLED"}:
            job.request = {}  # it cannot be retried
        job.size = memory_of([job.request, output, error])
        self.ended[status] += 1
        self._tell(job)
        if job.webhook:
            job.read.set()
            self._webhooks.send(job.webhook, job.state(self._clock()).as_json())

    @staticmethod
    def _tell(job: LocalJob) -> None:
        """Wake all followers of the job."""
        job.changed.set()
        job.changed = asyncio.Event()
        job.tell_news()

    # All jobs ------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._why_closed:
            raise NotTaking(str(self._why_closed), retry_after=30)

    def _check_room(self, size: int) -> None:
        waiting, limits = self._waiting(), self._limits
        memory = size + sum(job.size for job in waiting)
        is_much = bool(waiting) and memory > limits.waiting_bytes
        if is_much or len(waiting) >= limits.waiting:
            raise TooManyJobs(
                f"{len(waiting)} jobs wait already: send the job again later.", retry_after=30
            )

    def _find(self, job_id: str) -> LocalJob:
        self._forget_old()
        if job_id not in self._jobs:
            minutes = round(self._limits.kept_seconds / 60)
            raise NoSuchJob(
                f"There is no job {job_id[:80]!r}: answers are kept for {minutes} minutes, and for"
                " 1 minute after a request that waited for them."
            )
        return self._jobs[job_id]

    def _waiting(self) -> list[LocalJob]:
        return [job for job in self._jobs.values() if job.status == "IN_QUEUE"]

    def _forget_old(self) -> None:
        now, room = self._clock(), self._limits.kept_bytes
        for number, job in enumerate(reversed(self._ended()), 1):
            room -= job.size + job.chunks.size
            is_old = job.ended is not None and job.ended + job.kept < now
            if is_old or room < 0 or number > self._limits.kept:
                del self._jobs[job.id]

    def _ended(self) -> list[LocalJob]:
        ended = [job for job in self._jobs.values() if job.ended is not None]
        return sorted(ended, key=lambda job: job.ended or 0)

    def _shown(self, job: LocalJob) -> JobState:
        """The job for its client, who has read its answer then."""
        if job.status in FINAL:
            job.read.set()
        return job.state(self._clock())
