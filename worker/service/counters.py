"""Counts jobs since the worker's start; the task `health` and `/metrics` report the numbers."""

from __future__ import annotations

import itertools
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from worker.service.progress import JobProgress
from worker.service.report import JobCounts, PhaseSeconds, Queue, RunningJob
from worker.stopwatch import NOT_PHASES, Stopwatch

Outcome = Literal["completed", "failed", "cancelled", "timed_out"]
OUTCOMES: tuple[Outcome, ...] = ("completed", "failed", "cancelled", "timed_out")
UNKNOWN = "unknown"  # the task of a job that ended before the worker knew it

# Upper bounds of the histogram's buckets, in seconds.
BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Ended(NamedTuple):
    """How a job ended; `code` is that of its error, or empty."""

    task: str
    outcome: Outcome
    code: str = ""


@dataclass
class Histogram:
    """Seconds of one phase in buckets, the last of which has no upper bound."""

    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def observe(self, seconds: float) -> None:
        """Count one job."""
        self.seconds += seconds
        self.buckets[bisect_left(BOUNDS, seconds)] += 1

    @property
    def count(self) -> int:
        """Number of jobs."""
        return sum(self.buckets)

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus' buckets: the upper bound, and how many jobs were not above it."""
        names = [*map(str, BOUNDS), "+Inf"]
        return list(zip(names, map(float, itertools.accumulate(self.buckets)), strict=True))


@dataclass
class RunningCount:
    """A job that runs, as it will be counted.

    Attributes:
        answer: its answer, when it has one.
        ended: how it has ended for its caller, if that is known before its work has ended.
    """

    progress: JobProgress
    stopwatch: Stopwatch
    task: str = UNKNOWN
    answer: Mapping[str, Any] | None = None
    ended: tuple[Outcome, str] | None = None

    def end(self) -> Ended:
        """How it has ended; a job that raised has no answer, and was cancelled."""
        answer = self.answer
        if self.ended:
            return Ended(self.task, *self.ended)
        if answer is None:
            return Ended(self.task, "cancelled")
        if "error" not in answer:
            return Ended(self.task, "completed")
        # OpenAI's errors have it in small letters.
        return Ended(self.task, "failed", str(answer.get("code") or UNKNOWN).upper())


class Counters:
    """Counts jobs. Not thread-safe: for one event loop.

    Attributes:
        ended: number of jobs by how they ended.
        phases: the seconds of each phase of `timings`, and of `total`.
        gpu_seconds: seconds in which the engine worked for a job.
        queue: the jobs that wait in this process; None: they wait elsewhere.
    """

    def __init__(self) -> None:
        self.ended: Counter[Ended] = Counter()
        self.phases: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.gpu_seconds = 0.0
        self.queue: Callable[[], Queue] | None = None
        self._started = time.monotonic()
        self._running: dict[str, RunningCount] = {}

    @contextmanager
    def running(
        self, job_id: str, progress: JobProgress, stopwatch: Stopwatch
    ) -> Iterator[RunningCount]:
        """Count the job as running while the body runs, and then as ended.

        The body puts the job's answer into what it gets.
        """
        running = self._running[job_id] = RunningCount(progress, stopwatch)
        try:
            yield running
        finally:
            self._running.pop(job_id, None)
            self.ended[running.end()] += 1
            self._add(stopwatch.timings())

    def _add(self, timings: Mapping[str, float]) -> None:
        self.gpu_seconds += timings.get("gpu_seconds", 0.0)
        for name, seconds in timings.items():
            if name not in NOT_PHASES or name == "total":
                self.phases[name].observe(seconds)

    def runs(self, job_id: str, task: str) -> None:
        """Note the task of a running job; of a part of a job nothing is noted."""
        if job_id in self._running:
            self._running[job_id].task = task

    def abort(self, job_id: str, task: str, outcome: Outcome, code: str = "") -> None:
        """Count a job that its caller, its policy or the worker's end has ended.

        One that runs is counted when its work has ended, one that waits at once.
        """
        if running := self._running.get(job_id):
            running.ended = (outcome, code)
        else:
            self.ended[Ended(task, outcome, code)] += 1

    @property
    def running_count(self) -> int:
        """Number of jobs that run now."""
        return len(self._running)

    @property
    def uptime_seconds(self) -> float:
        """Seconds since the worker's start."""
        return time.monotonic() - self._started

    def jobs(self, asked_by: str | None = None) -> JobCounts:
        """The counts; the job that asks for them is not among the running ones."""
        others = [(job_id, one) for job_id, one in self._running.items() if job_id != asked_by]
        running = [
            RunningJob.model_construct(id=job_id, **one.progress.latest) for job_id, one in others
        ]
        return JobCounts.model_construct(
            None,
            **self._by("outcome", dict.fromkeys(OUTCOMES, 0)),
            running=running,
            failures={name: count for name, count in self._by("code").items() if name},
            tasks=self._by("task"),
        )

    def _by(self, name: str, counts: Mapping[str, int] = {}) -> dict[str, int]:
        found = dict(counts)
        for ended, count in self.ended.items():
            value = getattr(ended, name)
            found[value] = found.get(value, 0) + count
        return found

    def phase_seconds(self) -> dict[str, PhaseSeconds]:
        """The phases without their buckets."""
        return {
            name: PhaseSeconds.model_construct(count=one.count, seconds=round(one.seconds, 3))
            for name, one in self.phases.items()
        }
