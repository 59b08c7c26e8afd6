"""Ends a handler whose event loop hangs.

RunPod cannot see it: the SDK's pings come from a process of their own, which goes on telling that
all is well. So a thread asks the loop for a sign of life and kills the process group, pings
included, when none comes; start.sh or RunPod then starts anew.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import threading

logger = logging.getLogger("worker.watchdog")

PATIENCE = 60.0  # seconds; whatever blocks for long is done in threads, so the loop never should
EXIT_HUNG = 1  # only where the process leads no group: else it ends by SIGKILL

# A container that was frozen wakes up long after: no silence counts for more than its share.
_SHARES = 12


def start_watchdog(loop: asyncio.AbstractEventLoop, patience: float = PATIENCE) -> threading.Thread:
    """Watch the running loop, from a thread, until it is closed; `patience` in seconds."""
    thread = threading.Thread(
        target=_watch, args=(loop, patience), name="loop-watchdog", daemon=True
    )
    thread.start()
    return thread


def _watch(loop: asyncio.AbstractEventLoop, patience: float) -> None:
    pause = threading.Event()  # never set: a sleep
    while True:
        sign = threading.Event()
        try:
            loop.call_soon_threadsafe(sign.set)
        except RuntimeError:  # it is closed
            return
        if not any(sign.wait(patience / _SHARES) for _ in range(_SHARES)):
            if not loop.is_closed():
                _end(patience)
            return
        pause.wait(patience / _SHARES)


def _end(patience: float) -> None:
    """Say where everything stands, and end this process with all that it started."""
    logger.critical(
        "the event loop has been silent for %g s: ending the worker; where each thread is:",
        patience,
    )
    faulthandler.dump_traceback(sys.stderr)  # places only, no values
    sys.stderr.flush()
    for child in multiprocessing.active_children():
        child.kill()
    if os.getpgrp() == os.getpid():  # start.sh gives the handler a group of its own
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(EXIT_HUNG)  # in another's group, and as PID 1, which no SIGKILL of its own reaches
