"""A job of the queue in this process, and what the queue keeps."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.jobs import JobState
from gateway.local.policy import Policy
from gateway.local.stream import Chunks

Clock = Callable[[], float]
Json = Any


class Timer(Protocol):
    """A call that is planned."""

    def cancel(self) -> None:
        """Do not make the call."""


Later = Callable[[float, Callable[[], object]], Timer]


@dataclass(frozen=True)
class Limits:
    """What the queue keeps.

    Attributes:
        waiting: jobs that wait, at most.
        waiting_bytes: memory of their inputs together, at most.
        kept_seconds: how long an ended job is kept.
        kept_seconds_answered: the same if a waiting request has got its answer.
        kept: ended jobs, at most; beyond it the oldest are forgotten.
        kept_bytes: the same for the memory of all ended jobs together.
    """

    waiting: int = 1000
    waiting_bytes: int = 256_000_000
    kept_seconds: float = 1800
    kept_seconds_answered: float = 60
    kept: int = 5000
    kept_bytes: int = 256_000_000


LIMITS = Limits()


@dataclass
class LocalJob:
    """A job of the queue in this process; its times are the queue's clock's.

    Attributes:
        kept: seconds for which its answer is kept.
        size: bytes of memory of its input and its answer, as far as they are kept; about.
        read: set when its answer was fetched.
        changed: set at each change of its state, and then replaced.
        chunks: what it has sent to its stream.
        news: as `changed`, also for each chunk.
        work: the task that runs it; None when that has ended.
    """

    request: Mapping[str, Any]
    policy: Policy
    webhook: str | None
    came: float
    kept: float
    id: str = field(default_factory=lambda: f"{uuid.uuid4()}-local")
    status: str = "IN_QUEUE"
    output: Json = None
    error: str | None = None
    began: float | None = None
    ended: float | None = None
    size: int = 0
    read: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    chunks: Chunks = field(default_factory=Chunks)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    work: asyncio.Task[None] | None = None
    timers: list[Timer] = field(default_factory=list)

    def has_worked(self, work: asyncio.Task[None]) -> None:
        """Forget the task, which has ended: it would keep all that the handler had set there."""
        if self.work is work:  # else the job was queued again
            self.work = None

    def tell_news(self) -> None:
        """Wake all readers of the job's stream."""
        self.news.set()
        self.news = asyncio.Event()

    def state(self, now: float) -> JobState:
        """The job for its clients."""
        now = now if self.ended is None else self.ended
        began = now if self.began is None else self.began
        return JobState(
            id=self.id,
            status=self.status,
            output=self.output,
            error=self.error,
            delay_ms=round((began - self.came) * 1000),
            execution_ms=None if self.began is None else round((now - began) * 1000),
            worker_id="local",
        )
