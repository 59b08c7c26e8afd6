"""The start of a worker: background work runs while the engine boots."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

from worker.config.ports import is_answered
from worker.config.preflight import introduction, warnings
from worker.config.settings import Settings
from worker.errors import WorkerError
from worker.stopwatch import Stopwatch

log = logging.getLogger(__name__)

# Gets two events: the first is set when it should stop, the second when the engine has booted.
Background = Callable[[threading.Event, threading.Event], object]


class Ending(NamedTuple):
    """Why the process ends."""

    status: int
    reason: WorkerError


def advise(settings: Settings) -> None:
    """Say at once what to do if nothing has started the engine: the wait for it is long.

    Without start.sh nothing else has logged what this worker is, either.
    """
    if settings.supervisor_pid is not None:
        return
    log.info("%s", introduction(settings))
    for warning in warnings(settings):
        log.warning("%s", warning)
    if not is_answered(*settings.engine_address):
        log.warning(
            "nothing listens on port %d of %s, and handler.py alone starts no engine: run"
            " ./start.sh or make serve, which start both, or set WEBUI_URL to an engine that runs",
            *reversed(settings.engine_address),
        )


def boot(
    boot_engine: Callable[[float], None],
    timeout: float,
    background: Mapping[str, Background],
    stop: threading.Event,
) -> dict[str, float]:
    """Boot the engine and run the background work in parallel; return the seconds of each part.

    Work that takes longer than `timeout` goes on until the caller sets `stop`.

    Raises:
        WorkerError: the engine cannot make pictures.
    """
    stopwatch = Stopwatch(timeout)
    booted = threading.Event()

    def start(name: str, work: Background) -> threading.Thread:
        def run() -> None:
            with stopwatch.phase(name):
                work(stop, booted)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    threads = [start(name, work) for name, work in background.items()]
    try:
        with stopwatch.phase("engine"):
            boot_engine(timeout)
    except WorkerError:
        stop.set()
        raise
    finally:
        booted.set()
    for thread in threads:
        thread.join(stopwatch.left())
    return stopwatch.timings()
