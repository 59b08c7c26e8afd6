"""The progress of a download: a bar on a terminal, or lines in the log and updates for the job."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

log = logging.getLogger(__name__)

Listener = Callable[[dict[str, Any]], None]

# Called with the progress of this job's downloads: `phase`, `message`, and `percent` and
# `eta_seconds` where they are known.
listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


class DownloadProgress(Protocol):
    """The progress of one file."""

    def __call__(self, fetched: int, size: int | None) -> None:
        """Report the bytes that have arrived and the total; called several times a second."""

    def close(self) -> None:
        """End the report: the download has ended, successfully or not."""


class Terminal:
    """One progress bar per file."""

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        from tqdm import tqdm  # noqa: PLC0415 - no worker has a terminal

        self._bar = tqdm(
            desc=name[:40],
            unit="B",
            unit_scale=True,
            unit_divisor=1000,
            file=stream or sys.stderr,
        )
        self._resumed: int | None = None

    def __call__(self, fetched: int, size: int | None) -> None:
        """Move the bar; bytes from an earlier run do not count for the speed."""
        if self._resumed is None:
            self._resumed = self._bar.initial = fetched
            self._bar.n = fetched
        self._bar.total = size
        self._bar.update(fetched - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


@dataclass(frozen=True)
class ReportEvery:
    """Seconds from one report to the next."""

    log: float = 10.0
    job: float = 1.0


class Lines:
    """Lines in the log, and more frequent updates for the job.

    Args:
        name: of the model.
        update: gets the updates for the job.
        is_sent: whether the file is sent, and not downloaded.
        clock: seconds, rising.
    """

    def __init__(
        self,
        name: str,
        update: Listener | None = None,
        every: ReportEvery = ReportEvery(),
        clock: Callable[[], float] = time.monotonic,
        *,
        is_sent: bool = False,
    ) -> None:
        self._name = name
        self._is_sent = is_sent
        self._update = update
        self._every = every
        self._clock = clock
        self._begun = self._logged = clock()
        self._updated = 0.0
        self._resumed: int | None = None

    def __call__(self, fetched: int, size: int | None) -> None:
        """Log and update, if enough time has passed since the last report."""
        now = self._clock()
        if self._resumed is None:
            self._resumed = fetched
        if now - self._logged >= self._every.log:
            self._logged = now
            log.info("%s", self._line(fetched, size, now))
        if self._update and now - self._updated >= self._every.job:
            self._updated = now
            self._update(self._report(fetched, size, now))

    def close(self) -> None:
        """Do nothing: no resource is open."""

    def _report(self, fetched: int, size: int | None, now: float) -> dict[str, Any]:
        report = {"phase": "download", "message": self._line(fetched, size, now)}
        if not size:
            return report
        rate = self._rate(fetched, now)
        eta = {"eta_seconds": round((size - fetched) / rate, 1)} if rate else {}
        return report | {"percent": round(100 * fetched / size, 1)} | eta

    def _rate(self, fetched: int, now: float) -> float:
        """Bytes per second."""
        return (fetched - (self._resumed or 0)) / max(now - self._begun, 0.001)

    def _line(self, fetched: int, size: int | None, now: float) -> str:
        rate = self._rate(fetched, now)
        speed = f"{fetched / 1e6:.0f} MB, {rate / 1e6:.0f} MB/s"
        if not size:
            return f"downloading {self._name}: {speed}"
        left = f", {(size - fetched) / rate:.0f} s left" if rate else ""
        percent, total = 100 * fetched // size, size / 1e6
        if self._is_sent:
            return f"sending {self._name}: {percent} % of {total:.0f} MB, {speed}{left}"
        return f"downloading {self._name}: {percent} % of {total:.0f} MB, {speed}{left}"


def report_for(name: str, *, is_sent: bool = False) -> DownloadProgress:
    """A bar on a terminal; otherwise lines in the log and updates for this job's listener."""
    return Terminal(name) if sys.stderr.isatty() else Lines(name, listener.get(), is_sent=is_sent)
