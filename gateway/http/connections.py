"""uvicorn with limits on slow and on many clients."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True)
class ConnectionLimits:
    """How long and how many clients may keep the server waiting.

    Attributes:
        count: connections at once; further ones get 503.
        head: seconds from a connection's begin, or from its last answer, to a request's head.
        idle: seconds that a connection stays open between two requests.
        ending: seconds that answers may still be sent while the server ends.
    """

    count: int = 500
    head: float = 20.0
    idle: int = 15
    ending: int = 5


LIMITS = ConnectionLimits()


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: its caller decides when it ends."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals as they are."""
        yield


class _Limited(H11Protocol):
    """Closes connections on which no request's head arrives."""

    head_seconds: float
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop_waiting()
        self._await_head()

    def _await_head(self) -> None:
        self._waiting = self.loop.call_later(self.head_seconds, self._close_without_request)

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._waiting.cancel()

    def _close_without_request(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def server(app: ASGIApp, host: str, port: int, limits: ConnectionLimits = LIMITS) -> Server:
    """A server for this app. No line of its log contains a request.

    h11 bounds a request's head, which uvicorn's faster parser does not.
    """
    return Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=type("Limited", (_Limited,), {"head_seconds": limits.head}),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.count,
            timeout_keep_alive=limits.idle,
            timeout_graceful_shutdown=limits.ending,
        )
    )
