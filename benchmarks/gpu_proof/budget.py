"""The time of the proof: one limit for all of it, and a limit for each step within that."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StepTooLong(Exception):
    """A step used up its own time."""


class OutOfTime(Exception):
    """The time of the whole proof is used up."""


class Budget:
    """Seconds until `end`; every wait of a step asks `left` how long it may take."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self._step_end = self._end
        self._limit = seconds

    def remaining(self) -> float:
        """Seconds of the whole budget that are left; 0 at its end."""
        return max(0.0, self._end - self._clock())

    def share(self, parts: int) -> Budget:
        """A budget of one of several equal parts of what is left."""
        return Budget(self.remaining() / parts, self._clock)

    @contextmanager
    def step(self, limit: float) -> Iterator[None]:
        """Give the block at most `limit` seconds, and not more than the budget has."""
        self._limit = limit
        self._step_end = min(self._end, self._clock() + limit)
        try:
            yield
        finally:
            self._step_end = self._end

    def left(self) -> float:
        """Seconds that the running step may still take.

        Raises:
            OutOfTime: the whole budget is used up.
            StepTooLong: the step's part is used up.
        """
        now = self._clock()
        if now >= self._end:
            raise OutOfTime
        if now >= self._step_end:
            raise StepTooLong(f"it did not finish within its {self._limit:.0f} s")
        return self._step_end - now
