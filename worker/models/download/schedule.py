"""Which bytes of a file are fetched next, and over how many connections.

Pure: no IO, and the caller passes the time.

Parts are handed out in file order, so the bytes that have arrived without a hole grow steadily
and can be hashed on the way. Parts are small at the beginning, so that hashing starts early, and
towards the end, so that all connections finish together. Many connections are opened as soon as the
first one delivers, and stay while they are faster: object stores limit each connection, a fast host
needs only a few.
"""

from __future__ import annotations

import statistics
from bisect import insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from worker.models.download.limits import DEFAULT, DownloadLimits

_NO_END = 1 << 62
_MOMENT = 0.005  # seconds; the shortest time over which a rate is computed
_ENOUGH = 3  # rates to compare: with two, either could be the exception


@dataclass(eq=False)
class Part:
    """Bytes `position` to `end` (exclusive) are still to be fetched by one connection."""

    position: int
    end: int


class Parts:
    """The bytes of a file: fetched, being fetched, and free. The caller holds a lock.

    Args:
        size: bytes of the file; None until it is known.
        done: intervals `(start, end)` that an earlier run has fetched.
    """

    def __init__(
        self,
        size: int | None = None,
        done: Iterable[tuple[int, int]] = (),
        limits: DownloadLimits = DEFAULT,
    ) -> None:
        self.size = size
        self._limits = limits
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
            return self._limits.first_part
        left = sum(end - start for start, end in self._free)
        early = min(self._limits.early_part, self.size // (2 * connections))
        growing = early + (self.size - left) // connections
        shrinking = 2 * left // connections
        length = min(self._limits.largest_part, growing, shrinking)
        return max(self._limits.smallest_part, length)

    def give_back(self, part: Part) -> None:
        """The connection has ended; what it has not fetched is free again."""
        self._taken.remove(part)
        if part.position < part.end:
            insort(self._free, (part.position, part.end))

    def learn_size(self, size: int) -> None:
        """The file's size is known now."""
        self.size = size
        self._free = [(start, min(end, size)) for start, end in self._free if start < size]
        for part in self._taken:
            part.end = min(part.end, size)

    def extend_to_end(self, part: Part) -> None:
        """The host sends the whole file in one answer, so this part is all that is left."""
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
        """Whether `take` would return a part."""
        return bool(self._free)

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return self.size is not None and not self._missing()

    def done(self) -> list[tuple[int, int]]:
        """The intervals that have arrived, in file order."""
        return _gaps(self.size or 0, self._missing())

    def fetched(self) -> int:
        """Bytes that have arrived."""
        if self.size is None:  # one connection fetches it all, from its start
            return self.contiguous
        return sum(end - start for start, end in self.done())

    def _missing(self) -> list[tuple[int, int]]:
        taken = [(part.position, part.end) for part in self._taken if part.position < part.end]
        return sorted([*self._free, *taken])


def _gaps(size: int, intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The gaps between the intervals, from 0 to `size`."""
    gaps, position = [], 0
    for start, end in sorted(intervals):
        if position < start:
            gaps.append((position, min(start, size)))
        position = max(position, end)
    return [*gaps, (position, size)] if position < size else gaps


class Connections:
    """How many connections are open: more while that pays, fewer when the host complains.

    Args:
        now: seconds; the first connection has begun to deliver before.
        left: bytes of the file that are still to be fetched.
        rate: bytes per second of the first connection; None if it is not known.

    Attributes:
        allowed: connections that may be open now.
    """

    def __init__(
        self,
        now: float,
        left: int,
        rate: float | None = None,
        limits: DownloadLimits = DEFAULT,
    ) -> None:
        few, most = limits.fewest_connections, limits.most_connections
        if rate is None:
            wanted = most
        elif rate >= limits.fast:
            wanted = few
        else:
            wanted = int(left / (rate * limits.short))
        self.allowed = min(most, max(few, wanted))
        self._limits = limits
        self._most = most
        # Connections and rate of the last step; at first, what few would deliver at a host that
        # does not limit each connection.
        self._before = None if rate is None else (few, rate)
        self._measure_from = now + limits.settling
        self._bytes_then: int | None = None
        self._quiet_until: float | None = None  # set while it counts what a complaint leaves
        self._delivering = 0  # connections, the most since the complaint

    def update(self, now: float, fetched: int, delivering: int) -> None:
        """Record what has happened until `now` (seconds).

        Args:
            now: of the clock that all calls use.
            fetched: bytes that have arrived.
            delivering: connections that the host has answered and that are still open.
        """
        if self._quiet_until is not None:
            self._delivering = max(self._delivering, delivering)
            if now >= self._quiet_until:
                self._settle_for(self._delivering, now)
            return
        if now < self._measure_from:
            return
        if self._bytes_then is None:
            self._measure_from, self._bytes_then = now, fetched
        elif now - self._measure_from >= self._limits.measuring:
            self._decide(now, (fetched - self._bytes_then) / (now - self._measure_from))

    def host_complained(self, now: float) -> float:
        """429 or 503: no request for a moment; then as many as the host answers, until the end.

        Returns:
            When the next request may be sent (seconds); for one connection at once.
        """
        if self.allowed == 1:
            return now
        if self._quiet_until is None:
            self._quiet_until, self._delivering = now + self._limits.quiet, 0
        return self._quiet_until

    def _settle_for(self, delivering: int, now: float) -> None:
        self.allowed = self._most = max(1, min(self.allowed - 1, delivering))
        self._quiet_until = self._before = self._bytes_then = None
        self._measure_from = now + self._limits.settling

    def _decide(self, now: float, rate: float) -> None:
        self._bytes_then = None
        # Some hosts limit a connection only after its first bytes.
        burst = self._before and self._before[0] == self.allowed and rate < self._before[1] / 2
        if self._before and rate < self._before[1] * self._limits.worth_it and not burst:
            self.allowed = min(self._most, self._before[0])
            self._before, self._measure_from = None, now + self._limits.try_again
            return
        self._before = (self.allowed, rate)
        self.allowed = min(self._most, self.allowed * self._limits.growth)
        settled = self.allowed == self._before[0]
        self._before = None if settled else self._before
        self._measure_from = now + (self._limits.try_again if settled else self._limits.settling)


class Running:
    """The pace of one connection; `now` is always in seconds of one clock.

    Attributes:
        touched: when the last block arrived.
        rate: bytes per second in the last window; None before the first one is over.
    """

    def __init__(self, part: Part, now: float, limits: DownloadLimits = DEFAULT) -> None:
        self.part = part
        self._limits = limits
        self.touched = self._since = self._begun = now
        self._from = self._begun_at = part.position
        self.rate: float | None = None

    def measure(self, now: float) -> None:
        """Close the window if it is over."""
        if now - self._since >= self._limits.window:
            self.rate = (self.part.position - self._from) / (now - self._since)
            self._since, self._from = now, self.part.position

    def shows_rate(self, now: float) -> bool:
        """Whether enough has arrived: a fast host's first bytes were in the system's buffers."""
        enough = self.part.position - self._begun_at >= self._limits.judge_from
        return enough or now - self._begun >= self._limits.judge_within

    def mean_rate(self, now: float) -> float:
        """Bytes per second since it began."""
        return (self.part.position - self._begun_at) / max(now - self._begun, _MOMENT)


class Pace:
    """Compares the connections of one download."""

    def __init__(self, limits: DownloadLimits = DEFAULT) -> None:
        self._limits = limits
        # Fast connections end their parts before their rate is measured.
        self._ended: deque[float] = deque(maxlen=limits.samples)

    def ended(self, one: Running, now: float) -> None:
        """The connection has finished its part."""
        self._ended.append(one.mean_rate(now))

    def too_slow(self, running: Iterable[Running], now: float) -> list[Running]:
        """The connections that deliver nothing, or far less than the others."""
        running = list(running)
        for one in running:
            one.measure(now)
        rates = [one.rate for one in running if one.rate is not None] + list(self._ended)
        least = statistics.median(rates) * self._limits.slow if len(rates) >= _ENOUGH else 0
        stalled = now - self._limits.stalled
        return [
            one
            for one in running
            if one.touched < stalled or (one.rate is not None and one.rate < least)
        ]
