"""Serves the worker in this process: from before its engine is ready until its jobs have ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.app import build
from gateway.guard import Access
from gateway.local_jobs import LocalJobs

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn, which tells the jobs when it ends.

    Attributes:
        status: exit status of the process.
    """

    status = 0

    def __init__(self, config: uvicorn.Config, jobs: LocalJobs) -> None:
        super().__init__(config)
        self._jobs = jobs
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: requests that wait get their answer now, those that run when they are done."""
        self._loop.call_soon_threadsafe(self.drain)
        super().handle_exit(sig, frame)

    def drain(self) -> None:
        """Take no more jobs."""
        if self._draining is None:
            reason = "This worker is shutting down: send the job again."
            self._draining = asyncio.ensure_future(self._jobs.end(reason))

    async def drained(self) -> None:
        """Wait until every job has ended."""
        self.drain()
        if self._draining:
            await self._draining


async def serve(
    jobs: LocalJobs, access: Access, host: str, port: int, boot: Callable[[], int]
) -> int:
    """Serve until a signal; returns the exit status.

    `boot` waits, in a thread, until the engine is ready; its result is 0, or the exit status with
    which the process must end.
    """

    async def ping(_request: Request) -> Response:
        return JSONResponse({"ready": True}) if jobs.is_ready else Response(status_code=204)

    app = build(jobs, access, (Route("/ping", ping),))
    config = uvicorn.Config(app, host=host, port=port, log_config=None, access_log=False)
    server = Server(config, jobs)

    async def start() -> None:
        server.status = await asyncio.to_thread(boot)
        if server.status:
            server.should_exit = True
        else:
            jobs.begin()

    starting = asyncio.create_task(start())
    await server.serve()
    await server.drained()
    starting.cancel()
    return server.status
