"""Connections to the engine on which the whole answer has a limit in time.

A socket's own limit is for one read: an engine that sends a byte from time to time would keep a
thread, and with it a job, for ever.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection

LEAST = 120.0  # seconds for a whole answer; a long list over a slow network takes some


class _Socket(socket.socket):
    """Receives nothing after `until`, in seconds of the monotonic clock; None: no limit.

    Attributes:
        pause: seconds for one read.
    """

    until: float | None = None
    pause = LEAST

    def recv_into(self, *arguments: Any) -> int:  # noqa: ANN401 - those of a socket
        if self.until is not None:
            left = self.until - time.monotonic()
            if left <= 0:
                raise TimeoutError("the answer is not complete in time")
            self.settimeout(min(left, self.pause))
        return super().recv_into(*arguments)


class _Connection(HTTPConnection):
    """Its `timeout` is for one read, and for the whole answer if that is more than `LEAST`."""

    def _new_conn(self) -> socket.socket:
        connected = super()._new_conn()
        seconds = connected.gettimeout()
        limited = _Socket(fileno=connected.detach())
        limited.settimeout(seconds)
        return limited

    def getresponse(self) -> Any:  # noqa: ANN401 - urllib3's response
        if isinstance(self.sock, _Socket) and self.timeout is not None:
            self.sock.pause = float(self.timeout)
            self.sock.until = time.monotonic() + max(self.sock.pause, LEAST)
        return super().getresponse()


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class LimitedAdapter(HTTPAdapter):
    """For plain HTTP; of an engine behind TLS each read has the limit."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - requests'
        """Let new connections be of this kind."""
        super().init_poolmanager(*arguments, **options)
        classes = self.poolmanager.pool_classes_by_scheme
        self.poolmanager.pool_classes_by_scheme = {**classes, "http": _Pool}
