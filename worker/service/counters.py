"""What a worker has done since it started, for those who debug."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from worker.service.progress import JobProgress


class Counters:
    """Jobs by their end. For one event loop.

    Attributes:
        ended: number of jobs by how they ended: `completed`, `failed`, `cancelled`.
        failures: number of failed jobs by the error's code.
    """

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter(completed=0, failed=0, cancelled=0)
        self.failures: Counter[str] = Counter()
        self._started = time.monotonic()
        self._running: dict[str, JobProgress] = {}

    @contextmanager
    def running(self, job_id: str, progress: JobProgress) -> Iterator[None]:
        """The job runs while the body does."""
        self._running[job_id] = progress
        try:
            yield
        except asyncio.CancelledError:
            self.ended["cancelled"] += 1
            raise
        finally:
            self._running.pop(job_id, None)

    def end(self, answer: Mapping[str, Any]) -> None:
        """A job has got its answer."""
        code = answer.get("code") if "error" in answer else None
        self.ended["failed" if code else "completed"] += 1
        if code:
            self.failures[str(code)] += 1

    def shown(self, asked_by: str | None = None) -> dict[str, Any]:
        """As JSON; a running job, but not the one that asks, with its newest progress report."""
        others = [(name, one) for name, one in self._running.items() if name != asked_by]
        running = [{"id": name, **one.latest} for name, one in others]
        return {
            "uptime_seconds": round(time.monotonic() - self._started, 1),
            "jobs": {**self.ended, "running": running, "failures": dict(self.failures)},
        }
