"""Who fetches which bytes of a file next, and over how many connections. Pure: no IO, no clock.

Parts are handed out in file order, so the bytes that have arrived without a hole grow steadily
and can be hashed on the way. They are small at the beginning, so that this starts early, and
towards the end, so that all connections finish together. The number of connections grows while
that makes the download faster: object stores limit each connection, a fast host needs but a few.
"""

from __future__ import annotations

import statistics
from bisect import insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

MIB = 1 << 20
FIRST_PART = 4 * MIB  # before the size is known; enough for nearly every header
SMALLEST_PART = 4 * MIB
LARGEST_PART = 16 * MIB
_NO_END = 1 << 62

FEWEST_CONNECTIONS = 3
MOST_CONNECTIONS = 24
GROWTH = 8
WORTH_IT = 1.15  # more connections must raise the rate by this factor
SETTLING = 0.12  # seconds until new connections deliver
MEASURING = 0.2
TRY_AGAIN = 5.0


@dataclass(eq=False)
class Part:
    """Bytes `position` to `end` (exclusive) are still to be fetched by one connection."""

    position: int
    end: int


class Parts:
    """The bytes of a file: fetched, being fetched, and free. The caller holds a lock.

    Args:
        size: bytes of the file; None until the host has told.
        done: intervals `(start, end)` that an earlier run has fetched.
    """

    def __init__(self, size: int | None = None, done: Iterable[tuple[int, int]] = ()) -> None:
        self.size = size
        self._free = _gaps(_NO_END if size is None else size, done)
        self._taken: list[Part] = []

    def take(self, connections: int) -> Part | None:
        """The next part in file order; None if nothing is free."""
        if not self._free:
            return None
        start, end = self._free[0]
        length = min(end - start, self._length(connections))
        self._free[0:1] = [(start + length, end)] if start + length < end else []
        part = Part(start, start + length)
        self._taken.append(part)
        return part

    def _length(self, connections: int) -> int:
        if self.size is None:
            return FIRST_PART
        left = sum(end - start for start, end in self._free)
        begun = self.size - left
        length = min(LARGEST_PART, begun // connections, left // (2 * connections))
        return max(SMALLEST_PART, length)

    def give_back(self, part: Part) -> None:
        """The connection is done with it; what it has not fetched is free again."""
        self._taken.remove(part)
        if part.position < part.end:
            insort(self._free, (part.position, part.end))

    def learn_size(self, size: int) -> None:
        """The host has told how many bytes the file has."""
        self.size = size
        self._free = [(start, min(end, size)) for start, end in self._free if start < size]
        for part in self._taken:
            part.end = min(part.end, size)

    def extend_to_end(self, part: Part) -> None:
        """The host sends the whole file at once, so this part is all that is left."""
        part.end = _NO_END if self.size is None else self.size
        self._free = []

    @property
    def contiguous(self) -> int:
        """Bytes from the start of the file without a hole."""
        missing = [part.position for part in self._taken if part.position < part.end]
        missing += [self._free[0][0]] if self._free else []
        return min(missing, default=self.size or 0)

    @property
    def has_free(self) -> bool:
        """Whether `take` would give a part."""
        return bool(self._free)

    @property
    def is_complete(self) -> bool:
        """Whether every byte is here."""
        return self.size is not None and not self._missing()

    def done(self) -> list[tuple[int, int]]:
        """What is here, as intervals in file order."""
        return _gaps(self.size or 0, self._missing())

    def fetched(self) -> int:
        """Bytes that are here."""
        if self.size is None:  # one connection fetches it all, from its start
            return self.contiguous
        return sum(end - start for start, end in self.done())

    def _missing(self) -> list[tuple[int, int]]:
        taken = [(part.position, part.end) for part in self._taken if part.position < part.end]
        return sorted([*self._free, *taken])


def _gaps(size: int, intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """What the intervals leave free between 0 and `size`."""
    gaps, position = [], 0
    for start, end in sorted(intervals):
        if position < start:
            gaps.append((position, min(start, size)))
        position = max(position, end)
    return [*gaps, (position, size)] if position < size else gaps


class Connections:
    """How many connections: more while that pays, fewer when the host complains.

    Attributes:
        allowed: connections that may be open now.
    """

    def __init__(self, now: float) -> None:
        self.allowed = FEWEST_CONNECTIONS
        self._most = MOST_CONNECTIONS
        self._before: tuple[int, float] | None = None  # connections and rate of the last step
        self._measure_from = now + SETTLING
        self._bytes_then: int | None = None
        self._complained = now - 1

    def update(self, now: float, fetched: int) -> None:
        """Take note that `fetched` bytes are here at time `now` (seconds)."""
        if now < self._measure_from:
            return
        if self._bytes_then is None:
            self._measure_from, self._bytes_then = now, fetched
        elif now - self._measure_from >= MEASURING:
            self._decide(now, (fetched - self._bytes_then) / (now - self._measure_from))

    def host_complained(self, now: float) -> None:
        """429 or 503: half as many, and no more than that for the rest of the file."""
        if now - self._complained >= 1:  # all connections hear the same complaint at once
            self._complained = now
            self.allowed = self._most = max(1, self.allowed // 2)

    def _decide(self, now: float, rate: float) -> None:
        self._bytes_then = None
        if self._before and rate < self._before[1] * WORTH_IT:
            self.allowed = self._before[0]
            self._before, self._measure_from = None, now + TRY_AGAIN
            return
        self._before = (self.allowed, rate)
        self.allowed = min(self._most, self.allowed * GROWTH)
        settled = self.allowed == self._before[0]
        self._before = None if settled else self._before
        self._measure_from = now + (TRY_AGAIN if settled else SETTLING)


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
