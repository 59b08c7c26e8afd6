"""What the gateway's routes need of a back: a queue of jobs with RunPod's states."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

Status = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})


class GatewayError(Exception):
    """The gateway cannot do what a request asks for.

    Attributes:
        status: HTTP status of the answer.
        retry_after: seconds after which the client may try again; None: trying again is no use.
    """

    status = 500

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BadRequest(GatewayError):
    """The request itself is wrong."""

    status = 400


class NoSuchJob(GatewayError):
    """The queue has no job with this id: it never existed, or its result was not kept."""

    status = 404


class NoSuchFile(GatewayError):
    """The page has no such file."""

    status = 404


class TooManyJobs(GatewayError):
    """The queue is full."""

    status = 429


class EndpointFailed(GatewayError):
    """RunPod, or the network on the way to it, failed."""

    status = 502


class NotPossible(GatewayError):
    """The queue, or the job's state, does not allow it."""

    status = 409


class TookTooLong(GatewayError):
    """The answer was not there before the time limit of the place where this runs."""

    status = 504


class NotTaking(GatewayError):
    """This server takes no jobs: it is shutting down."""

    status = 503


@dataclass(frozen=True)
class JobState:
    """A job at one moment.

    Attributes:
        output: its answer; while it runs, its newest progress report; None before.
        error: the text of a failed job.
        delay_ms: milliseconds in the queue; None: it is still there.
        execution_ms: milliseconds of work so far.
    """

    id: str
    status: str
    output: Any = None
    error: str | None = None
    delay_ms: int | None = None
    execution_ms: int | None = None
    worker_id: str | None = None

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self.status in FINAL

    def as_json(self) -> dict[str, Any]:
        """The job as RunPod's routes show it."""
        shown = {
            "id": self.id,
            "status": self.status,
            "delayTime": self.delay_ms,
            "executionTime": self.execution_ms,
            "workerId": self.worker_id,
            "output": self.output,
            "error": self.error,
        }
        return {key: value for key, value in shown.items() if value is not None}


@dataclass(frozen=True)
class Streamed:
    """What a job has sent to its stream since the last call.

    Attributes:
        state: the job after that.
        chunks: as RunPod's /stream shows them: `{"output": ...}`.
    """

    state: JobState
    chunks: list[dict[str, Any]]


class Jobs(Protocol):
    """A queue of jobs. Each method raises a `GatewayError` where the queue cannot do it."""

    async def submit(self, request: Mapping[str, Any]) -> JobState:
        """Queue a job: `{"input": {...}}`, and RunPod's `webhook`, `policy` and `s3Config`.

        A caller that is cancelled gets the job all the same if it may be queued already: without
        its id it could not be cancelled.
        """

    async def state(self, job_id: str) -> JobState:
        """The job now."""

    def follow(self, job_id: str) -> AsyncGenerator[JobState, None]:
        """The job now, then each change of it; the last state is final."""

    async def stream(self, job_id: str, hold: float) -> Streamed:
        """What the job has sent to its stream since the last call; a chunk is returned once.

        Waits at most `hold` seconds for a chunk, or for the job's end. A call that is cancelled has
        taken nothing.
        """

    async def cancel(self, job_id: str) -> JobState:
        """Cancel the job and stop its work; a job that has ended stays as it is."""

    async def purge(self) -> int:
        """Remove all jobs that wait; returns their number."""

    async def health(self) -> dict[str, Any]:
        """Numbers of jobs and workers, as RunPod's /health has them."""

    async def is_awake(self) -> bool:
        """Whether a worker runs now, so that a short job starts none and costs almost nothing."""


@runtime_checkable
class KeepsJobs(Protocol):
    """What only a queue in this process does: it has the jobs' inputs and answers in memory."""

    async def retry(self, job_id: str) -> JobState:
        """Queue a job again that has failed or timed out, under the same id."""

    def answered(self, job_id: str) -> None:
        """A waiting request got the job's end: its answer is kept only for a short time."""


async def last_state(jobs: Jobs, job_id: str) -> JobState:
    """The state in which the job ends, as soon as it has ended.

    Raises:
        GatewayError: there is no such job, or the back failed.
    """
    async with aclosing(jobs.follow(job_id)) as following:
        async for state in following:
            last = state
    return last
