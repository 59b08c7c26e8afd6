"""The sockets on which the server listens. They notice a client that vanishes without a word."""

from __future__ import annotations

import contextlib
import errno
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class KeepAlive:
    """How a silent connection is probed: a client without power or network closes nothing.

    Attributes:
        idle: seconds without data until the first probe.
        interval: seconds between two probes.
        probes: that may stay without an answer.
    """

    idle: int = 15
    interval: int = 5
    probes: int = 3


KEEP_ALIVE = KeepAlive()


def listen(host: str, port: int, keep_alive: KeepAlive = KEEP_ALIVE) -> list[socket.socket]:
    """Listen on all addresses of the host; `localhost` has two, and clients try either.

    Raises:
        OSError: no address can be listened on; the port is perhaps taken.
    """
    sockets: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        for family, kind, number, _, address in _addresses(host, port):
            listening = undo.enter_context(socket.socket(family, kind, number))
            try:
                _prepare(listening, keep_alive)
                listening.bind(address)
            except OSError as error:
                if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                    raise
                continue  # such as ::1 on a machine without IPv6
            listening.listen(128)
            sockets.append(listening)
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, f"this machine has no address {host!r}")
        undo.pop_all()
    return sockets


def _addresses(
    host: str, port: int
) -> list[tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(found))  # type: ignore[arg-type]


def _prepare(listening: socket.socket, keep_alive: KeepAlive) -> None:
    """Set the options that every accepted connection inherits."""
    if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows: SO_REUSEADDR would share a taken port
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listening.family == socket.AF_INET6:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    patience = keep_alive.idle + keep_alive.interval * keep_alive.probes
    options = {
        "TCP_KEEPIDLE": keep_alive.idle,
        "TCP_KEEPALIVE": keep_alive.idle,  # macOS's name for it
        "TCP_KEEPINTVL": keep_alive.interval,
        "TCP_KEEPCNT": keep_alive.probes,
        "TCP_USER_TIMEOUT": patience * 1000,  # of data that is not acknowledged; Linux
    }
    for name, value in options.items():
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
