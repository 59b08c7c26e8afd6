"""Ends the request of a thread from another thread, also before its answer has begun.

A socket's timeout is for one read: a host that sends a byte from time to time keeps a thread for
hours. With an `Interrupt`, the thread that waits for the result can end the request at a deadline.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

_TICK = 0.1  # seconds between two looks at `stop`


class Interrupt:
    """Can cut the connections that one thread uses."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._is_cut = False

    @contextmanager
    def covers(self) -> Iterator[None]:
        """Inside, `cut` concerns every connection of this thread; then it forgets them."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)
            self._forget()

    def cut(self) -> None:
        """Cut the connections, now and from now on: the thread that uses them gets an error."""
        with self._lock:
            self._is_cut = True
            for one in self._sockets:
                _shut_down(one)

    def watch(self, connection: socket.socket) -> None:
        """Remember a connection until the end of `covers`.

        Raises:
            ConnectionAbortedError: `cut` was called before.
        """
        with self._lock:
            if self._is_cut:
                raise ConnectionAbortedError
            # A duplicate, because TLS takes the socket out of the object that connected it.
            self._sockets.append(socket.socket(fileno=os.dup(connection.fileno())))

    def _forget(self) -> None:
        with self._lock:
            for one in self._sockets:
                one.close()  # the duplicate: the connection itself stays as it is
            self._sockets.clear()


@contextmanager
def within(seconds: float, stop: threading.Event | None = None) -> Iterator[None]:
    """Cut the connections of this thread after so many seconds, or when `stop` is set.

    The thread that uses them gets an error.
    """
    interrupt, done = Interrupt(), threading.Event()
    clock = threading.Thread(
        target=_cut_in_time, args=[interrupt, seconds, stop, done], name="deadline", daemon=True
    )
    clock.start()
    try:
        with interrupt.covers():
            yield
    finally:
        done.set()


def _cut_in_time(
    interrupt: Interrupt, seconds: float, stop: threading.Event | None, done: threading.Event
) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not (stop and stop.is_set()):
        if done.wait(min(left, _TICK) if stop else left):
            return
    interrupt.cut()


_current: ContextVar[Interrupt | None] = ContextVar("interrupt", default=None)


def watch(connection: socket.socket) -> None:
    """Let the interrupt that covers this thread, if any, cut the connection.

    Raises:
        ConnectionAbortedError: it was cut before.
    """
    if interrupt := _current.get():
        interrupt.watch(connection)


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):  # it has ended already
        connection.shutdown(socket.SHUT_RDWR)
