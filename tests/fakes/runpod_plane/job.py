"""One job of the control plane, and RunPod's limits on it."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}
RETRIABLE = {"FAILED", "TIMED_OUT"}
EXECUTION_TIMEOUT_MS = 600_000
MB = 1_000_000
LONGEST_CHUNK = MB
# Bytes of a request and of a result, by the route that the job came through.
LONGEST_BODY = {"run": 10 * MB, "runsync": 20 * MB, "batch": 10 * 2**20}
_ID = {"run": "{}-u1", "runsync": "sync-{}-u1", "batch": "req_{}"}


@dataclass
class Job:
    """One job from its submission to its result.

    Attributes:
        request: the body of the client's call.
        route: `run`, `runsync` or `batch`.
        extra: what job-take shows beside `id`, `input` and `webhook`.
        attempt: how often the job was queued; a timer of an earlier attempt has no effect.
        chunks: what the worker posted to job-stream.
        chunks_read: how many of them the client has read.
        has_returned: whether /stream has shown the output of a job without chunks.
    """

    request: Mapping[str, Any]
    route: str = "run"
    extra: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    status: str = "IN_QUEUE"
    attempt: int = 1
    worker: str | None = None
    output: Any = None
    error: Any = None
    chunks: list[Any] = field(default_factory=list)
    chunks_read: int = 0
    has_returned: bool = False
    queued: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None

    def __post_init__(self) -> None:
        self.id = self.id or _ID[self.route].format(uuid.uuid4())

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.status in FINAL

    @property
    def policy(self) -> Mapping[str, Any]:
        """The request's execution policy; empty without one."""
        return self.request.get("policy") or {}

    def public(self) -> dict[str, Any]:
        """The job as /status shows it."""
        shown = {"id": self.id, "status": self.status, "workerId": self.worker}
        shown |= {"output": self.output, "error": self.error}
        shown |= {"delayTime": _milliseconds(self.queued, self.started)}
        shown |= {"executionTime": _milliseconds(self.started, self.ended)}
        return {key: value for key, value in shown.items() if value is not None}

    def for_worker(self) -> dict[str, Any]:
        """The job as job-take sends it."""
        beside = {"webhook": self.request.get("webhook")}
        if "s3Config" in self.request:
            beside["s3Config"] = self.request["s3Config"]
        return {"id": self.id, "input": self.request["input"], **beside, **self.extra}

    def unread_chunks(self) -> list[dict[str, Any]]:
        """What /stream shows: the chunks since its last call; it counts them as read."""
        unread = self.chunks[self.chunks_read :]
        self.chunks_read = len(self.chunks)
        if self.is_over and not self.chunks and not self.has_returned:
            self.has_returned = True
            unread = [] if self.output is None else [self.output]
        return [{"output": chunk} for chunk in unread]

    def requeue(self) -> None:
        """Queue the job again, with the same id and input and without its result."""
        self.status, self.attempt = "IN_QUEUE", self.attempt + 1
        self.worker = self.output = self.error = self.started = self.ended = None
        self.chunks, self.chunks_read, self.has_returned = [], 0, False
        self.queued = time.time()


def _milliseconds(since: float | None, until: float | None) -> int | None:
    return None if since is None or until is None else round((until - since) * 1000)
