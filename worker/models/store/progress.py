"""Who hears how far a download is: a person at a terminal, or the log and the job."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

from tqdm import tqdm

LOG_EVERY = 10.0  # seconds
TELL_EVERY = 1.0  # seconds

log = logging.getLogger("worker.models")

Tell = Callable[[dict[str, Any]], None]

# Who hears of the downloads of this job: `phase`, `message`, and where known `percent` and
# `eta_seconds`.
listener: ContextVar[Tell | None] = ContextVar("listener", default=None)


class DownloadProgress(Protocol):
    """The progress of one file."""

    def __call__(self, fetched: int, size: int | None) -> None:
        """Called several times a second with bytes here and bytes in all."""

    def close(self) -> None:
        """The download has ended, one way or the other."""


class Terminal:
    """A bar for each file."""

    def __init__(self, name: str) -> None:
        self._bar = tqdm(
            desc=name[:40], unit="B", unit_scale=True, unit_divisor=1000, file=sys.stderr
        )
        self._resumed: int | None = None

    def __call__(self, fetched: int, size: int | None) -> None:
        """Move the bar; what an earlier run fetched does not count for the speed."""
        if self._resumed is None:
            self._resumed = self._bar.initial = fetched
            self._bar.n = fetched
        self._bar.total = size
        self._bar.update(fetched - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


class Lines:
    """A log line now and then, and more often a word to whoever waits for the job."""

    def __init__(self, name: str, tell: Tell | None = None) -> None:
        self._name = name
        self._tell = tell
        self._begun = self._logged = time.monotonic()
        self._told = 0.0
        self._resumed: int | None = None

    def __call__(self, fetched: int, size: int | None) -> None:
        """Say it, if it is time."""
        now = time.monotonic()
        if self._resumed is None:
            self._resumed = fetched
        if now - self._logged >= LOG_EVERY:
            self._logged = now
            log.info("%s", self._line(fetched, size, now))
        if self._tell and now - self._told >= TELL_EVERY:
            self._told = now
            self._tell(self._report(fetched, size, now))

    def close(self) -> None:
        """Nothing is open."""

    def _report(self, fetched: int, size: int | None, now: float) -> dict[str, Any]:
        report = {"phase": "download", "message": self._line(fetched, size, now)}
        if not size:
            return report
        rate = self._rate(fetched, now)
        eta = {"eta_seconds": round((size - fetched) / rate, 1)} if rate else {}
        return report | {"percent": round(100 * fetched / size, 1)} | eta

    def _rate(self, fetched: int, now: float) -> float:
        """Bytes a second."""
        return (fetched - (self._resumed or 0)) / max(now - self._begun, 0.001)

    def _line(self, fetched: int, size: int | None, now: float) -> str:
        rate = self._rate(fetched, now)
        speed = f"{fetched / 1e6:.0f} MB, {rate / 1e6:.0f} MB/s"
        if not size:
            return f"downloading {self._name}: {speed}"
        left = f", {(size - fetched) / rate:.0f} s left" if rate else ""
        percent = 100 * fetched // size
        return f"downloading {self._name}: {percent} % of {size / 1e6:.0f} MB, {speed}{left}"


def report_for(name: str) -> DownloadProgress:
    """A bar where a person watches, else lines, also for this job's listener."""
    return Terminal(name) if sys.stderr.isatty() else Lines(name, listener.get())
