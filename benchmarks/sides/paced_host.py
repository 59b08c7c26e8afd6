"""A host of one file that limits each connection, as object stores do: FILE SIZE RATE DELAY [PEM].

Sends FILE again and again until SIZE bytes are sent, so that a large file needs little memory. The
kernel paces each connection to RATE bytes per second (`SO_MAX_PACING_RATE`), over all its requests;
each answer begins after DELAY seconds. It speaks TLS if PEM is given. It prints its port, and ends
when its standard input ends. It uses little CPU, because the kernel paces and sends.
"""

from __future__ import annotations

import mmap
import os
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

SO_MAX_PACING_RATE = 47  # Linux; the socket module does not name it
BLOCK = 256 * 1024  # bytes encrypted in one call
MOST_HEADERS = 64 * 1024  # bytes


@dataclass(frozen=True)
class Content:
    """SIZE bytes: the file's, repeated.

    Attributes:
        view: the file in memory.
    """

    descriptor: int
    view: memoryview
    size: int

    def send(self, connection: socket.socket, start: int, end: int) -> None:
        """Send the bytes from `start` to `end` (exclusive)."""
        length = len(self.view)
        while start < end:
            offset = start % length
            wanted = min(end - start, length - offset)
            if isinstance(connection, ssl.SSLSocket):
                wanted = min(wanted, BLOCK)
                connection.sendall(self.view[offset : offset + wanted])
                start += wanted
            else:
                start += os.sendfile(connection.fileno(), self.descriptor, offset, wanted)


def serve(content: Content, rate: int, delay: float, context: ssl.SSLContext | None) -> None:
    """Accept connections for ever, each in a thread."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    while True:
        accepted, _ = listener.accept()
        accepted.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        work = partial(_connection, accepted, content, delay, context)
        threading.Thread(target=work, daemon=True).start()


def _connection(
    accepted: socket.socket, content: Content, delay: float, context: ssl.SSLContext | None
) -> None:
    try:
        connection = context.wrap_socket(accepted, server_side=True) if context else accepted
        with connection:
            while request := _request(connection):
                time.sleep(delay)
                _answer(connection, content, request)
    except OSError:
        return  # the client has closed the connection before its end


def _request(connection: socket.socket) -> bytes:
    """The next request's head; empty at the end of the connection."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < MOST_HEADERS:
        received = connection.recv(MOST_HEADERS)
        if not received:
            return b""
        head += received
    return head


def _answer(connection: socket.socket, content: Content, head: bytes) -> None:
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    start, end, status = 0, content.size, "200 OK"
    more = "Accept-Ranges: bytes\r\n"
    if wanted := headers.get("range"):
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(content.size, int(last) + 1 if last else content.size)
        status = "206 Partial Content"
        more += f"Content-Range: bytes {start}-{end - 1}/{content.size}\r\n"
    text = (
        f'HTTP/1.1 {status}\r\nETag: "one"\r\n{more}Content-Type: application/octet-stream\r\n'
        f"Content-Length: {end - start}\r\n\r\n"
    )
    connection.sendall(text.encode())
    content.send(connection, start, end)


def main(path: str, size: str, rate: str, delay: str, pem: str = "") -> None:
    """Serve until the standard input ends."""
    descriptor = os.open(Path(path), os.O_RDONLY)
    view = memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))
    context = None
    if pem:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
    work = partial(serve, Content(descriptor, view, int(size)), int(rate), float(delay), context)
    threading.Thread(target=work, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
