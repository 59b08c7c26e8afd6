"""The time of one job: seconds per phase, and what is left until its deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Starts when it is made; `timeout` is in seconds."""

    def __init__(self, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._timeout = timeout
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body, also when it fails."""
        started = self._clock()
        try:
            yield
        finally:
            self._phases[name] = round(self._clock() - started, 3)

    def limit(self, timeout: float) -> None:
        """Bring the deadline forward; it can only become earlier."""
        self._timeout = min(self._timeout, timeout)

    @property
    def timeout(self) -> float:
        """Seconds that the job may take in all."""
        return self._timeout

    def left(self) -> float:
        """Seconds until the deadline; 0 afterwards."""
        return max(0.0, self._started + self._timeout - self._clock())

    def timings(self) -> dict[str, float]:
        """Seconds of the phases so far and in total."""
        return {**self._phases, "total": round(self._clock() - self._started, 3)}
