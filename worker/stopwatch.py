"""Times a job or the start: the seconds of each phase, and those left until the deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from worker.errors import JobTimeout


class Stopwatch:
    """Starts when it is created.

    Args:
        timeout: seconds until the deadline.
        entered: called with the name of each phase that begins.
        clock: returns seconds; tests pass their own.
    """

    def __init__(
        self,
        timeout: float,
        entered: Callable[[str], None] = lambda _name: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._entered = entered
        self._started = clock()
        self._timeout = timeout
        self._phases: dict[str, float] = {}
        self._running: dict[str, float] = {}  # when each unfinished phase began

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body, even if it fails."""
        self._running[name] = self._clock()
        self._entered(name)
        try:
            yield
        finally:
            self._phases[name] = round(self._clock() - self._running.pop(name), 3)

    def limit(self, timeout: float) -> None:
        """Set an earlier deadline; a later one is ignored."""
        self._timeout = min(self._timeout, timeout)

    @property
    def timeout(self) -> float:
        """Seconds from the start to the deadline."""
        return self._timeout

    def left(self) -> float:
        """Seconds until the deadline; 0 afterwards."""
        return max(0.0, self._started + self._timeout - self._clock())

    def timings(self) -> dict[str, float]:
        """Seconds of each phase, including unfinished ones, and their `total`."""
        now = self._clock()
        # A copy, because other threads end phases of the start.
        running = {name: round(now - began, 3) for name, began in self._running.copy().items()}
        return {**self._phases, **running, "total": round(now - self._started, 3)}

    def expired(self, what: str, hint: str | None = None) -> JobTimeout:
        """The error for a passed deadline; its message has the seconds of each phase."""
        spent = {name: seconds for name, seconds in self.timings().items() if name != "total"}
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items())
        message = f"{what} within {self._timeout:g} s ({phases})."
        return JobTimeout(message, hint=hint, timings=self.timings())
