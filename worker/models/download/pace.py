"""Which connections of a download are too slow to be kept. Pure: the time is told."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable

from worker.models.download.schedule import Part

STALLED = 20.0  # seconds without a block, then the connection is replaced
WINDOW = 10.0  # seconds over which a connection is compared with the others
SLOW = 0.25  # of the median rate
SAMPLES = 8  # connections that ended last count in that median, too
_MOMENT = 0.005


class Running:
    """The pace of one connection; `now` is always in seconds of one clock.

    Attributes:
        touched: when the last block came.
        rate: bytes per second in the last window; None before the first one is over.
    """

    def __init__(self, part: Part, now: float) -> None:
        self.part = part
        self.touched = self._since = self._begun = now
        self._from = self._begun_at = part.position
        self.rate: float | None = None

    def measure(self, now: float) -> None:
        """Close the window if it is over."""
        if now - self._since >= WINDOW:
            self.rate = (self.part.position - self._from) / (now - self._since)
            self._since, self._from = now, self.part.position

    def mean_rate(self, now: float) -> float:
        """Bytes per second since it began."""
        return (self.part.position - self._begun_at) / max(now - self._begun, _MOMENT)


class Pace:
    """Compares the connections of one download."""

    def __init__(self) -> None:
        # Fast ones end their parts before anybody measures them.
        self._ended: deque[float] = deque(maxlen=SAMPLES)

    def ended(self, one: Running, now: float) -> None:
        """The connection is through with its part."""
        self._ended.append(one.mean_rate(now))

    def too_slow(self, running: Iterable[Running], now: float) -> list[Running]:
        """Those that deliver nothing, or far less than the others."""
        running = list(running)
        for one in running:
            one.measure(now)
        rates = [one.rate for one in running if one.rate is not None] + list(self._ended)
        # Of two, none is the slow one for sure.
        least = statistics.median(rates) * SLOW if len(rates) > 2 else 0  # noqa: PLR2004
        return [
            one
            for one in running
            if now - one.touched > STALLED or (one.rate is not None and one.rate < least)
        ]
