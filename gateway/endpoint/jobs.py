"""The back for a RunPod queue endpoint: its /run, /status, /cancel, /purge-queue and /health."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.endpoint.http import (
    HTTP_LIMITS,
    Address,
    EndpointHttp,
    HttpLimits,
    Sleep,
    WrongEndpoint,
)
from gateway.jobs import (
    FINAL,
    EndpointFailed,
    GatewayError,
    JobState,
    NoSuchJob,
    NotTaking,
    Streamed,
    TooManyJobs,
)

logger = logging.getLogger(__name__)

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# RunPod's documents name this status, its API the other one.
_SAME = {"RUNNING": "IN_PROGRESS"}
# RunPod's "idle" and "ready" are workers that are scaled down: a job starts them.
_AWAKE = ("running",)


@dataclass(frozen=True)
class Polling:
    """When the status of a job is read.

    Attributes:
        first: seconds until the second read, and after each change; then `growth` times as many.
        queued, running: seconds between two reads at most, in the queue and while it runs.
        rate: reads of all jobs in a second, at most; RunPod allows 200.
        outage: seconds for which reads may fail before the job is given up.
        lost: reads in a row in which RunPod does not know the job before it counts as lost.
        longest: seconds that a job may be followed.
    """

    first: float = 0.2
    growth: float = 1.3
    queued: float = 2.0
    running: float = 1.0
    rate: float = 100
    outage: float = 120
    lost: int = 3
    longest: float = 3600


POLLING = Polling()


class Endpoint:
    """Jobs of one endpoint. For one event loop; call `end` and `close` at its end."""

    def __init__(
        self,
        address: Address,
        polling: Polling = POLLING,
        limits: HttpLimits = HTTP_LIMITS,
        *,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = EndpointHttp(address, limits, sleep)
        self._polling = polling
        self._sleep = sleep
        self._clock = clock
        self._followed = 0
        self._ending = asyncio.Event()

    # The protocol --------------------------------------------------------------------------------

    async def submit(self, request: Mapping[str, Any]) -> JobState:
        """Queue a job."""
        if self._ending.is_set():
            raise NotTaking("The bridge is shutting down and takes no more jobs.", retry_after=30)
        try:
            answer = await self._http.submit("/run", dict(request))
        except NoSuchJob:
            raise self._unknown_endpoint() from None
        state = _state_of(answer)
        if not _JOB_ID.fullmatch(state.id):
            raise EndpointFailed("RunPod has taken the job, but its answer has no id of a job.")
        return state

    async def state(self, job_id: str) -> JobState:
        """The job now."""
        return _state_of(await self._http.repeat("GET", f"/status/{_checked(job_id)}"), job_id)

    async def follow(self, job_id: str) -> AsyncGenerator[JobState, None]:
        """The job now, then each change of it, as reads of its status show it.

        Raises:
            NotTaking: `end` was called.
        """
        reads = _Reads(self._polling, self._clock)
        self._followed += 1
        try:
            while True:
                state = await self._read(job_id, reads)
                if state and reads.is_new(state):
                    yield state
                    if state.is_final:
                        return
                await self._pause(reads.pause(self._followed))
        finally:
            self._followed -= 1

    async def stream(self, job_id: str, hold: float) -> Streamed:
        """What RunPod's /stream has of the job; it is asked again until it has something."""
        path, until = f"/stream/{_checked(job_id)}", self._clock() + hold
        while True:
            answer = await self._http.repeat("GET", path)
            status, chunks = _status_of(answer), answer.get("stream")
            if not isinstance(chunks, list):
                raise EndpointFailed("RunPod's answer has no list of chunks.")
            if not chunks and status in FINAL:
                return Streamed(await self.state(job_id), [])
            if chunks or self._ending.is_set() or self._clock() >= until:
                return Streamed(JobState(job_id, status), chunks)
            await self._pause(min(self._polling.running, until - self._clock()))

    async def cancel(self, job_id: str) -> JobState:
        """Cancel the job; tried several times, because a job that runs on is paid for."""
        answer = await self._http.repeat("POST", f"/cancel/{_checked(job_id)}")
        return _state_of(answer, job_id)

    async def purge(self) -> int:
        """Remove all jobs that wait, also those of other clients of the endpoint."""
        removed = (await self._http.repeat("POST", "/purge-queue")).get("removed")
        return removed if isinstance(removed, int) else 0

    async def health(self) -> dict[str, Any]:
        """RunPod's numbers of jobs and workers."""
        try:
            return await self._http.repeat("GET", "/health")
        except NoSuchJob:
            raise self._unknown_endpoint() from None

    async def is_awake(self) -> bool:
        """Whether a worker could take a job now; a job would start one otherwise."""
        workers = (await self.health()).get("workers")
        counts = [workers.get(name) for name in _AWAKE] if isinstance(workers, dict) else []
        return any(isinstance(count, int) and count > 0 for count in counts)

    # The end -------------------------------------------------------------------------------------

    def end(self) -> int:
        """Take no more jobs and end `follow`, so that its callers cancel theirs; their number."""
        self._ending.set()
        return self._followed

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    # Reading a status ----------------------------------------------------------------------------

    async def _read(self, job_id: str, reads: _Reads) -> JobState | None:
        """The job's state; None where reading it failed and may be tried again."""
        reading = asyncio.ensure_future(self.state(job_id))
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
            if self._ending.is_set():
                raise NotTaking("The bridge is shutting down: the job is cancelled.")
            state = reading.result()
        except (NoSuchJob, TooManyJobs, EndpointFailed) as error:
            reads.failed(error, job_id)
            return None
        finally:
            for task in (reading, ending):
                task.cancel()
        reads.succeeded()
        return state

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond `end`."""
        sleeping = asyncio.ensure_future(self._sleep(seconds))
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait({sleeping, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sleeping, ending):
                task.cancel()

    def _unknown_endpoint(self) -> GatewayError:
        return WrongEndpoint(
            f"RunPod knows no endpoint at {self._http.address.url}: correct its id."
        )


class _Reads:
    """What the reads of one job's status have shown, and when the next one comes."""

    def __init__(self, polling: Polling, clock: Callable[[], float]) -> None:
        self._polling = polling
        self._clock = clock
        self._began = self._well = clock()
        self._pause = polling.first
        self._unknown = 0
        self._last: JobState | None = None

    def succeeded(self) -> None:
        self._well, self._unknown = self._clock(), 0

    def is_new(self, state: JobState) -> bool:
        """Whether the job has changed; its times alone are no change."""
        last, self._last = self._last, state
        if last and (last.status, last.output) == (state.status, state.output):
            return False
        self._pause = self._polling.first
        return True

    def failed(self, error: GatewayError, job_id: str) -> None:
        """Raise the error if it is not worth another read."""
        if isinstance(error, NoSuchJob):
            self._unknown += 1
            if self._unknown >= self._polling.lost:
                raise NoSuchJob(
                    f"RunPod no longer knows the job {job_id}: a result is kept for 30 minutes, and"
                    " the queue was perhaps purged."
                ) from None
            return
        if isinstance(error, WrongEndpoint) or self._clock() - self._well > self._polling.outage:
            raise error

    def pause(self, followed: int) -> float:
        """Seconds until the next read.

        Raises:
            EndpointFailed: the job takes too long.
        """
        polling = self._polling
        if self._clock() - self._began > polling.longest:
            raise EndpointFailed(
                f"The job has not ended within {polling.longest / 60:.0f} minutes: look in RunPod's"
                " console why no worker has finished it."
            )
        is_running = self._last is not None and self._last.status == "IN_PROGRESS"
        pause = min(self._pause, polling.running if is_running else polling.queued)
        self._pause *= polling.growth
        return max(pause, followed / polling.rate)


def _checked(job_id: str) -> str:
    """The id, which becomes part of a URL that is called with the key."""
    if not _JOB_ID.fullmatch(job_id):
        raise NoSuchJob(f"{job_id[:80]!r} is no id of a job.")
    return job_id


def _state_of(answer: Mapping[str, Any], job_id: str = "") -> JobState:
    status, output = _status_of(answer), answer.get("output")
    error = answer.get("error")
    if status == "COMPLETED" and output is None and not error:
        status, error = (
            "FAILED",
            (
                "RunPod has no result of the job: it drops one of more than 10 MB. Ask for fewer or"
                " smaller pictures, for JPEG, or set a bucket."
            ),
        )
    if status == "TIMED_OUT" and not error:
        error = "The job took longer than the endpoint's execution timeout: raise it in RunPod."
    return JobState(
        id=str(answer.get("id") or job_id),
        status=status,
        output=output,
        error=None if error is None else error if isinstance(error, str) else str(error),
        delay_ms=_whole(answer.get("delayTime")),
        execution_ms=_whole(answer.get("executionTime")),
        worker_id=answer["workerId"] if isinstance(answer.get("workerId"), str) else None,
    )


def _status_of(answer: Mapping[str, Any]) -> str:
    status = str(answer.get("status", ""))
    status = _SAME.get(status, status)
    if status not in {"IN_QUEUE", "IN_PROGRESS", *FINAL}:
        raise EndpointFailed(f"RunPod's answer has no status of a job, but {status[:40]!r}.")
    return status


def _whole(value: object) -> int | None:
    if isinstance(value, int | float) and abs(value) < 1e15:  # noqa: PLR2004 - no infinity
        return round(value)
    return None
