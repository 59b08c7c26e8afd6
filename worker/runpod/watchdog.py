"""Ends a handler whose event loop hangs.

RunPod cannot notice it: the SDK's pings come from a process of their own, which goes on reporting
a healthy worker. So a thread asks the event loop for a sign of life. If none comes, it kills the
process group, pings included; start.sh or RunPod then starts a new worker.
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

EXIT_HUNG = 1  # if the process does not lead its group; else it ends by SIGKILL

# A container that was frozen sees a jump of the clock, which must not look like a long silence:
# the time is waited for in so many parts, and a jump can end only one of them.
_PARTS = 12


def start_watchdog(loop: asyncio.AbstractEventLoop, silence: float) -> threading.Thread:
    """Watch the running loop, from a thread, until it is closed.

    It hangs when it does nothing for `silence` seconds.
    """
    thread = threading.Thread(
        target=_watch, args=(loop, silence), name="loop-watchdog", daemon=True
    )
    thread.start()
    return thread


def _watch(loop: asyncio.AbstractEventLoop, silence: float) -> None:
    pause = threading.Event()  # never set: a sleep
    while True:
        is_alive = threading.Event()
        try:
            loop.call_soon_threadsafe(is_alive.set)
        except RuntimeError:  # the loop is closed
            return
        if not any(is_alive.wait(silence / _PARTS) for _ in range(_PARTS)):
            if not loop.is_closed():
                _end(silence)
            return
        pause.wait(silence / _PARTS)


def _end(silence: float) -> None:
    """Log where each thread is, and end this process with all processes that it started."""
    logger.critical(
        "the event loop has been silent for %g s: ending the worker; where each thread is:",
        silence,
    )
    faulthandler.dump_traceback(sys.stderr)  # places only, no values
    sys.stderr.flush()
    for child in multiprocessing.active_children():
        child.kill()
    if os.getpgrp() == os.getpid():  # start.sh gives the handler a group of its own
        os.killpg(os.getpgrp(), signal.SIGKILL)
    # As a member of another group; and as PID 1, which its own SIGKILL does not reach.
    os._exit(EXIT_HUNG)
