"""The gateway's app on a free port of loopback, in a thread of its own, with its real server."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

from starlette.types import ASGIApp

from fakes.runpod_endpoint import ENDPOINT, KEY, RunPodEndpoint
from gateway.app import build
from gateway.endpoint.http import Address, HttpLimits
from gateway.endpoint.jobs import Endpoint, Polling
from gateway.http.connections import LIMITS, ConnectionLimits, server
from gateway.http.guard import Access
from gateway.http.listen import KEEP_ALIVE, KeepAlive, listen

LOCAL = Access()
QUICK = Polling(first=0.02, queued=0.05, running=0.05)


@dataclass(frozen=True)
class Served:
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def raw(self, request: bytes, *, half_close: bool = False) -> bytes:
        """The bytes that the server answers to these, until it closes or has answered."""
        with socket.create_connection(("127.0.0.1", self.port), 30) as line:
            with suppress(ConnectionError):  # it may answer before it has read everything
                line.sendall(request)
            if half_close:
                line.shutdown(socket.SHUT_WR)
            return read_answer(line)


def read_answer(line: socket.socket) -> bytes:
    """One answer with a Content-Length, or everything until the server closes."""
    answer = b""
    with suppress(ConnectionError):
        while part := line.recv(65536):
            answer += part
            head, ended, body = answer.partition(b"\r\n\r\n")
            lengths = [row for row in head.lower().split(b"\r\n") if row.startswith(b"content-len")]
            if ended and lengths and len(body) >= int(lengths[0].split(b":")[1]):
                break
    return answer


@contextmanager
def served(
    make: Callable[[], AbstractAsyncContextManager[ASGIApp]],
    *,
    port: int = 0,
    keep_alive: KeepAlive = KEEP_ALIVE,
    limits: ConnectionLimits = LIMITS,
) -> Iterator[Served]:
    """Serve the app that `make` builds, and closes, in the server's loop; port 0: any free one."""
    sockets = listen("127.0.0.1", port, keep_alive)
    port = sockets[0].getsockname()[1]
    started = threading.Event()
    stop: list[Callable[[], None]] = []

    async def main() -> None:
        async with make() as app:
            running = server(app, "127.0.0.1", port, limits)
            stop.append(lambda: setattr(running, "should_exit", True))
            started.set()
            await running.serve(sockets=sockets)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert started.wait(30)
        yield Served(port)
    finally:
        stop[0]()
        thread.join()


@contextmanager
def served_endpoint(
    runpod: RunPodEndpoint | str, access: Access = LOCAL, **how: object
) -> Iterator[Served]:
    """The gateway in front of this endpoint of RunPod, or of that at a URL."""

    @asynccontextmanager
    async def make() -> AsyncIterator[ASGIApp]:
        url = runpod if isinstance(runpod, str) else f"{runpod.url}/v2/{ENDPOINT}"
        endpoint = Endpoint(Address(url, KEY), QUICK, HttpLimits(first_pause=0.01))
        yield build(endpoint, access)
        await endpoint.close()

    with served(make, **how) as gateway:
        yield gateway
