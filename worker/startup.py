"""The start of a worker: what can run beside the engine's boot does, and each part is timed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_CHUNK = 1 << 24  # bytes

Result = TypeVar("Result")


class Startup:
    """Begins when it is made.

    Attributes:
        timings: seconds of each part that has ended.
    """

    def __init__(self) -> None:
        self.timings: dict[str, float] = {}
        self._began = time.monotonic()

    def run(self, name: str, work: Callable[[], Result]) -> Result:
        """Do it now."""
        began = time.monotonic()
        try:
            return work()
        finally:
            self.timings[name] = round(time.monotonic() - began, 3)

    def beside(self, name: str, work: Callable[[], object]) -> threading.Thread:
        """Do it in a thread, which ends with the process."""
        thread = threading.Thread(target=self.run, args=(name, work), name=name, daemon=True)
        thread.start()
        return thread

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def finish(self) -> dict[str, float]:
        """All timings, with the total."""
        self.timings["total"] = round(self.elapsed(), 3)
        return self.timings


def read_ahead(file: Path, stop: threading.Event) -> None:
    """Bring a file into the page cache; whoever loads it then waits for no disk.

    It is only a favour: a file that cannot be read is the loader's to report.
    """
    buffer = bytearray(_CHUNK)
    try:
        with file.open("rb", buffering=0) as opened:
            while not stop.is_set() and opened.readinto(buffer):
                pass
    except OSError:
        return
