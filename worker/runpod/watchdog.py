"""Ends a handler whose event loop hangs, and the pings of a handler that was killed.

RunPod cannot notice it: the SDK sends its pings from another process, which would keep reporting a
healthy worker. So a thread checks that the event loop still runs. If it does not, the thread kills
the process group, pings included; start.sh or RunPod then starts a new worker.
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
import time

logger = logging.getLogger(__name__)

EXIT_HUNG = 1  # if the process does not lead its group; else it ends by SIGKILL

_LOOK_EVERY = 1.0  # seconds between two looks whether the parent still exists

# Seconds for the last lines of the log. If nobody reads it any more, writing them never ends: then
# the kernel ends the process (SIGALRM), unless it is PID 1.
_LAST_LINES = 10.0

# In a container that was frozen, the clock jumps forward; that must not count as a long silence.
# So the time is divided into this many waits, and a jump can end only one of them.
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


def end_within(seconds: float = 60.0) -> None:
    """From now on, end this process by force if it does not end itself in time.

    A thread that waits for ever, such as one of a library, would keep it: paid, and without jobs.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds + _LAST_LINES)
    if sys.stderr:
        faulthandler.dump_traceback_later(seconds, exit=True)


def end_forks_with_parent() -> None:
    """Let each process that is forked from now on end with the process that forked it.

    So the SDK's pings end when the handler is killed, also if nobody is left to stop them.
    """
    parent = 0

    # Before the fork: a forked process may get its first turn only after its parent's end.
    def remember_parent() -> None:
        nonlocal parent
        parent = os.getpid()

    def follow_parent() -> None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()

    os.register_at_fork(before=remember_parent, after_in_child=follow_parent)


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(0)


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
    signal.setitimer(signal.ITIMER_REAL, _LAST_LINES)
    logger.critical(
        "the event loop has been silent for %g s: ending the worker; where each thread is:",
        silence,
    )
    if sys.stderr:
        faulthandler.dump_traceback(sys.stderr)  # places only, no values
        sys.stderr.flush()
    for child in multiprocessing.active_children():
        child.kill()
    if os.getpgrp() == os.getpid():  # start.sh gives the handler a group of its own
        os.killpg(os.getpgrp(), signal.SIGKILL)
    # Reached if this process is in another group, or is PID 1: its own SIGKILL does not end PID 1.
    os._exit(EXIT_HUNG)
