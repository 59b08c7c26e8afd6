"""Counts jobs since the worker's start, by how they ended; the task `health` reports it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from worker.service.progress import JobProgress
from worker.service.report import JobCounts, RunningJob, WorkerHealth


class Counters:
    """Counts jobs. Not thread-safe: for one event loop.

    Attributes:
        ended: number of jobs by how they ended: `completed`, `failed`, `cancelled`.
        failures: number of failed jobs by error code.
    """

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter(completed=0, failed=0, cancelled=0)
        self.failures: Counter[str] = Counter()
        self._started = time.monotonic()
        self._running: dict[str, JobProgress] = {}

    @contextmanager
    def running(self, job_id: str, progress: JobProgress) -> Iterator[None]:
        """Count the job as running while the body runs."""
        self._running[job_id] = progress
        try:
            yield
        except asyncio.CancelledError:
            self.ended["cancelled"] += 1
            raise
        finally:
            self._running.pop(job_id, None)

    def end(self, answer: Mapping[str, Any]) -> None:
        """Count a job that has its answer."""
        code = answer.get("code") if "error" in answer else None
        self.ended["failed" if code else "completed"] += 1
        if code:
            self.failures[str(code).upper()] += 1  # OpenAI's errors have it in small letters

    @property
    def running_count(self) -> int:
        """Number of jobs that run now."""
        return len(self._running)

    def health(self, startup: Mapping[str, float], asked_by: str | None = None) -> WorkerHealth:
        """The counts for the task `health`; its own job is not among the running ones."""
        others = [(job_id, one) for job_id, one in self._running.items() if job_id != asked_by]
        running = [RunningJob.model_construct(id=job_id, **one.latest) for job_id, one in others]
        return WorkerHealth.model_construct(
            uptime_seconds=round(time.monotonic() - self._started, 1),
            jobs=JobCounts.model_construct(
                completed=self.ended["completed"],
                failed=self.ended["failed"],
                cancelled=self.ended["cancelled"],
                running=running,
                failures=dict(self.failures),
            ),
            startup=dict(startup),
        )
