"""Times a job or the start: the seconds of each phase, those left until the deadline, the price."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from worker.errors import JobTimeout

ON_THE_ENGINE = "generate"  # from the job's first request to the engine to its last answer
# What `Stopwatch.timings` has beside the phases.
NOT_PHASES = frozenset({"total", "gpu_seconds", "usd_per_picture"})
ABOUT_COST = (
    " `gpu_seconds` are those in which the engine worked for this job. `usd_per_picture`, where the"
    " price of the card is known, estimates its cost: see [costs.md](costs.md#the-estimate)."
)


class Stopwatch:
    """Starts when it is created.

    Args:
        timeout: seconds until the deadline.
        entered: called with the name of each phase that begins.
        clock: returns seconds; tests pass their own.
        usd_per_second: what a second of this worker costs; None if unknown.

    Attributes:
        pictures: number of pictures that the job has returned, without those of its parts.
    """

    def __init__(
        self,
        timeout: float,
        entered: Callable[[str], None] = lambda _name: None,
        clock: Callable[[], float] = time.monotonic,
        *,
        usd_per_second: float | None = None,
    ) -> None:
        self.pictures = 0
        self._usd_per_second = usd_per_second
        self._parts: list[Stopwatch] = []
        self._whole: Stopwatch | None = None
        self._clock = clock
        self._entered = entered
        self._started = clock()
        self._timeout = timeout
        self._phases: dict[str, float] = {}
        self._running: dict[str, float] = {}  # when each unfinished phase began
        self._of_others = 0.0  # seconds on the engine that count for other jobs
        self._busy_since: float | None = None  # when the last of these began

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body, even if it fails."""
        self._running[name] = self._clock()
        self._entered(name)
        try:
            yield
        finally:
            self._phases[name] = round(self._clock() - self._running.pop(name), 3)

    @contextmanager
    def engine_busy(self) -> Iterator[None]:
        """During the body, which is in this job's phase on the engine, it works for another job.

        The deadline moves on by these seconds: the job is not late because that one is.
        """
        began = self._busy_since = self._clock()
        try:
            yield
        finally:
            self._busy_since = None
            self._of_others += self._clock() - began

    def part(self, entered: Callable[[str], None]) -> Stopwatch:
        """The stopwatch of a part of the job, with a deadline that is not after that of the whole.

        The part's seconds on the engine and its pictures count for the whole job, too.
        """
        part = Stopwatch(self.left(), entered, self._clock, usd_per_second=self._usd_per_second)
        part._whole = self
        self._parts.append(part)
        return part

    def limit(self, timeout: float) -> None:
        """Set an earlier deadline; a later one is ignored."""
        self._timeout = min(self._timeout, timeout)

    @property
    def timeout(self) -> float:
        """Seconds from the start to the deadline."""
        return self._timeout

    def left(self) -> float:
        """Seconds until the deadline; 0 afterwards."""
        now = self._clock() if self._busy_since is None else self._busy_since
        left = max(0.0, self._started + self._timeout + self._of_others - now)
        return min(left, self._whole.left()) if self._whole else left

    def phases(self) -> dict[str, float]:
        """Seconds of each phase, including unfinished ones."""
        # A copy, because other threads end phases of the start.
        running = self._running.copy().items()
        now = self._clock()
        return self._phases | {name: round(now - began, 3) for name, began in running}

    def timings(self) -> dict[str, float]:
        """Seconds of each phase, and `total`.

        `gpu_seconds` are those on the engine, if there were any; `usd_per_picture` is the price of
        all seconds but those in the queue, for each picture, if both are known.
        """
        phases, total = self.phases(), round(self._clock() - self._started, 3)
        timings = {**phases, "total": total}
        if (on_engine := self.engine_seconds()) is not None:
            timings["gpu_seconds"] = round(on_engine, 3)
        pictures = self.pictures + sum(part.pictures for part in self._parts)
        if pictures and self._usd_per_second is not None:
            dollars = self._usd_per_second * max(0.0, total - phases.get("queue", 0.0))
            timings["usd_per_picture"] = round(dollars / pictures, 8)
        return timings

    def engine_seconds(self) -> float | None:
        """Seconds on the engine, of the job and its parts; None if it was not used."""
        all_of = [self._own_engine_seconds(), *(part.engine_seconds() for part in self._parts)]
        used = [seconds for seconds in all_of if seconds is not None]
        return sum(used) if used else None

    def _own_engine_seconds(self) -> float | None:
        seconds = self.phases().get(ON_THE_ENGINE)
        return None if seconds is None else max(0.0, seconds - self._of_others)

    def expired(self, what: str, hint: str | None = None) -> JobTimeout:
        """The error for a passed deadline; its message has the seconds of each phase."""
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.phases().items())
        message = f"{what} within {self._timeout:g} s ({phases})."
        return JobTimeout(message, hint=hint, timings=self.timings())
