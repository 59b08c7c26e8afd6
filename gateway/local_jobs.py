"""The back for the worker in this process: a queue with RunPod's states, in memory."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.jobs import FINAL, JobState, NoSuchJob, NotTaking, TooManyJobs
from worker.runpod.results import result_body

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
Clock = Callable[[], float]
Json = Any


@dataclass(frozen=True)
class Limits:
    """What the queue keeps.

    Attributes:
        waiting: jobs that wait, at most.
        kept_seconds: how long an ended job is kept.
        kept_characters: of text in all ended jobs together; beyond it the oldest are forgotten.
    """

    waiting: int = 1000
    kept_seconds: float = 1800
    kept_characters: int = 256_000_000


@dataclass
class _Job:
    request: Mapping[str, Any]
    came: float
    id: str = field(default_factory=lambda: f"{uuid.uuid4()}-local")
    status: str = "IN_QUEUE"
    output: Json = None
    error: str | None = None
    began: float | None = None
    ended: float | None = None
    size: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    work: asyncio.Task[None] | None = None


class LocalJobs:
    """Runs jobs with the handler, in the order in which they came. For one event loop.

    Args:
        handler: gets `{"id", "input"}`, returns the answer; raises only when it is cancelled.
        concurrency: jobs that the handler gets at once.
        is_quick: whether an input is answered beside the jobs that draw, such as a list.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        concurrency: int = 1,
        is_quick: Callable[[Json], bool] = lambda _input: False,
        limits: Limits = Limits(),
        clock: Clock = time.monotonic,
    ) -> None:
        self._handler = handler
        self._is_quick = is_quick
        self._limits = limits
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._slots = asyncio.Semaphore(concurrency)
        self._ready = asyncio.Event()
        self._is_ending = False

    # For the server ------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether jobs run; before that they wait."""
        return self._ready.is_set()

    def begin(self) -> None:
        """The engine is ready: run the jobs."""
        self._ready.set()

    async def report(self, job: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """Take a progress report; the handler's `post_progress`."""
        found = self._jobs.get(str(job["id"]))
        if found and found.status == "IN_PROGRESS":
            found.output = dict(report)
            self._tell(found)

    async def end(self, reason: str) -> None:
        """Take no more jobs, end those that wait with this reason, and wait for those that run."""
        self._is_ending = True
        for job in self._waiting():
            self._close(job, "FAILED", {"message": reason}, reason)
        running = [job.work for job in self._jobs.values() if job.work and not job.work.done()]
        if running:
            await asyncio.wait(running)

    # The protocol --------------------------------------------------------------------------------

    async def submit(self, request: Mapping[str, Any]) -> JobState:
        """Queue a job."""
        if self._is_ending:
            raise NotTaking("This worker is shutting down and takes no more jobs.", retry_after=30)
        if len(self._waiting()) >= self._limits.waiting:
            raise TooManyJobs(
                f"{self._limits.waiting} jobs wait already: send the job again later.",
                retry_after=30,
            )
        self._forget_old()
        job = _Job(request, self._clock())
        self._jobs[job.id] = job
        job.work = asyncio.create_task(self._run(job))
        return self._state_of(job)

    async def state(self, job_id: str) -> JobState:
        """The job now."""
        return self._state_of(self._find(job_id))

    async def follow(self, job_id: str) -> AsyncGenerator[JobState, None]:
        """The job now, then each change of it."""
        job = self._find(job_id)
        while True:
            changed = job.changed
            yield self._state_of(job)
            if job.status in FINAL:
                return
            await changed.wait()

    async def cancel(self, job_id: str) -> JobState:
        """Cancel the job; a handler that runs it stops the engine."""
        job = self._find(job_id)
        if job.status not in FINAL:
            self._close(job, "CANCELLED", None, None)
            if job.work:
                job.work.cancel()
        return self._state_of(job)

    async def purge(self) -> int:
        """Cancel all jobs that wait."""
        waiting = self._waiting()
        for job in waiting:
            await self.cancel(job.id)
        return len(waiting)

    async def health(self) -> dict[str, Any]:
        """Numbers of jobs and workers, as RunPod's /health has them."""
        count = dict.fromkeys(("IN_QUEUE", "IN_PROGRESS", *sorted(FINAL)), 0)
        for job in self._jobs.values():
            count[job.status] += 1
        is_busy = count["IN_PROGRESS"] > 0
        workers = dict.fromkeys(("idle", "initializing", "ready", "running", "throttled"), 0)
        workers["running" if is_busy else "idle" if self.is_ready else "initializing"] = 1
        workers["ready"] = int(self.is_ready)
        return {
            "jobs": {
                "completed": count["COMPLETED"],
                "failed": count["FAILED"] + count["TIMED_OUT"],
                "inProgress": count["IN_PROGRESS"],
                "inQueue": count["IN_QUEUE"],
                "retried": 0,
            },
            "workers": {**workers, "unhealthy": 0},
        }

    async def is_awake(self) -> bool:
        """Whether the engine is ready."""
        return self.is_ready

    # One job -------------------------------------------------------------------------------------

    async def _run(self, job: _Job) -> None:
        await self._ready.wait()
        if self._is_quick(job.request.get("input")):
            await self._work(job)
            return
        async with self._slots:
            await self._work(job)

    async def _work(self, job: _Job) -> None:
        if job.status != "IN_QUEUE":
            return
        job.status, job.began = "IN_PROGRESS", self._clock()
        self._tell(job)
        answer = await self._handler({"id": job.id, "input": job.request.get("input")})
        body = result_body(answer)
        status = "FAILED" if "error" in body else "COMPLETED"
        self._close(job, status, body.get("output"), body.get("error"))

    def _close(self, job: _Job, status: str, output: Json, error: str | None) -> None:
        if job.status in FINAL:
            return
        job.status, job.output, job.error = status, output, error
        job.ended, job.size = self._clock(), _characters(output)
        self._tell(job)

    @staticmethod
    def _tell(job: _Job) -> None:
        """Wake all followers of the job."""
        job.changed.set()
        job.changed = asyncio.Event()

    # All jobs ------------------------------------------------------------------------------------

    def _find(self, job_id: str) -> _Job:
        self._forget_old()
        if job_id not in self._jobs:
            minutes = round(self._limits.kept_seconds / 60)
            raise NoSuchJob(
                f"There is no job {job_id[:80]!r}: results are kept for {minutes} minutes."
            )
        return self._jobs[job_id]

    def _waiting(self) -> list[_Job]:
        return [job for job in self._jobs.values() if job.status == "IN_QUEUE"]

    def _forget_old(self) -> None:
        oldest, room = self._clock() - self._limits.kept_seconds, self._limits.kept_characters
        for job in reversed(self._ended()):
            room -= job.size
            if room < 0 or (job.ended or 0) < oldest:
                del self._jobs[job.id]

    def _ended(self) -> list[_Job]:
        ended = [job for job in self._jobs.values() if job.ended is not None]
        return sorted(ended, key=lambda job: job.ended or 0)

    def _state_of(self, job: _Job) -> JobState:
        now = job.ended or self._clock()
        return JobState(
            id=job.id,
            status=job.status,
            output=job.output,
            error=job.error,
            delay_ms=round(((job.began or now) - job.came) * 1000),
            execution_ms=round((now - job.began) * 1000) if job.began else None,
            worker_id="local",
        )


def _characters(value: Json) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_characters(item) for item in value.values())
    return sum(map(_characters, value)) if isinstance(value, list) else 0
