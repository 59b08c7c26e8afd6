"""The start of a worker: what can run beside the engine's boot does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from worker.stopwatch import Stopwatch

_CHUNK = 1 << 24  # bytes


def run_in_background(
    stopwatch: Stopwatch, name: str, work: Callable[[], object]
) -> threading.Thread:
    """Do the work in a daemon thread, timed as a phase of that name."""

    def run() -> None:
        with stopwatch.phase(name):
            work()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


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
