"""Whether a port of this machine is free, or answered."""

from __future__ import annotations

import socket


def why_not_free(host: str, port: int) -> str | None:
    """Why no program can listen there now, in the system's words; None if one can."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return None


def is_answered(host: str, port: int, timeout: float = 1.0) -> bool:
    """Whether a program accepts connections there."""
    try:
        socket.create_connection((host, port), timeout).close()
    except OSError:
        return False
    return True
