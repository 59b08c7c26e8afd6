"""Serves the worker in this process: from before its engine is ready until its jobs have ended."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.app import build
from gateway.http.connections import LIMITS, ConnectionLimits, Server, server
from gateway.http.guard import Access
from gateway.http.json_answer import JsonAnswer
from gateway.http.listen import listen
from gateway.local.jobs import LocalJobs
from gateway.local.metrics import Metrics
from gateway.local.place import Place
from worker.errors import WorkerEnding
from worker.service.startup import Ending

logger = logging.getLogger(__name__)

EXIT_PORT_TAKEN = 71  # EX_OSERR of sysexits.h, as in start.sh
EXIT_REPLACE = 75  # EX_TEMPFAIL: start this worker again


Boot = Callable[[], Ending | None]

_STOPPED = Ending(0, WorkerEnding("this worker is shutting down."))
_REPLACED = Ending(EXIT_REPLACE, WorkerEnding("this worker is being replaced."))


async def serve(
    jobs: LocalJobs,
    boot: Boot,
    *,
    metrics: Metrics,
    access: Access,
    place: Place,
    limits: ConnectionLimits = LIMITS,
) -> int:
    """Serve until SIGTERM, SIGINT or an answer that retires the worker; returns the exit status.

    `boot` waits, in a thread, until the engine is ready; it returns why the process must end, or
    None. Until then jobs wait. At the end no job is taken, jobs that wait get the reason, and
    those that run end and are answered before the server closes.
    """
    ping = Route("/ping", _ping(jobs))
    app = build(jobs, access, (ping, metrics.route()))
    app.state.longest_request = place.longest_request
    ports = {place.port: app}
    if place.health_port is not None:
        ports[place.health_port] = Starlette(routes=[ping])
    try:
        listening = [listen(place.host, port) for port in ports]
    except OSError as error:
        logger.error("%s cannot be listened on: %s", place.host, error.strerror)  # noqa: TRY400
        return EXIT_PORT_TAKEN
    servers = [server(one, place.host, port, limits) for port, one in ports.items()]
    logger.info("listening on http://%s:%d", place.host, place.port)
    running = [
        asyncio.ensure_future(one.serve(sockets=sockets))
        for one, sockets in zip(servers, listening, strict=True)
    ]
    ending = await _first(_signal(), _boot(jobs, boot), _retired(jobs), _stopped(running))
    logger.info("%s Running jobs: %d", ending.reason, (await jobs.health())["jobs"]["inProgress"])
    await jobs.end(ending.reason, place.grace)
    await jobs.read(place.patience)
    await _close(servers, running)
    return ending.status


def _ping(jobs: LocalJobs) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """200: ready; 204: the engine starts; 503: this worker ends. As RunPod's load balancer asks."""

    async def ping(_request: Request) -> Response:
        if jobs.is_ending:
            return JsonAnswer({"ready": False}, 503)
        return JsonAnswer({"ready": True}) if jobs.is_ready else Response(status_code=204)

    return ping


# Reasons to end; each returns when it happens -----------------------------------------------------


async def _first(*reasons: Coroutine[Any, Any, Ending]) -> Ending:
    waiting = [asyncio.ensure_future(reason) for reason in reasons]
    done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for other in others:
        other.cancel()
    return next(iter(done)).result()


async def _signal() -> Ending:
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, came.set)  # it stays: a second signal changes nothing
    await came.wait()
    return _STOPPED


async def _boot(jobs: LocalJobs, boot: Boot) -> Ending:
    """Begin the jobs when the engine is ready; returns only if it never is."""
    loop = asyncio.get_running_loop()
    booted: asyncio.Future[Ending | None] = loop.create_future()

    def tell(ending: Ending | None) -> None:
        if not booted.done():
            booted.set_result(ending)

    def work() -> None:
        ending = boot()
        with suppress(RuntimeError):  # the process ends already
            loop.call_soon_threadsafe(tell, ending)

    # A daemon, because a signal does not wait for the engine.
    threading.Thread(target=work, name="boot", daemon=True).start()
    if ending := await booted:
        return ending
    jobs.begin()
    return await asyncio.Future()


async def _retired(jobs: LocalJobs) -> Ending:
    await jobs.retiring.wait()
    return _REPLACED


async def _stopped(running: Sequence[asyncio.Future[None]]) -> Ending:
    """A server that ends by itself; that is a fault."""
    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    return Ending(1, WorkerEnding("its HTTP server has stopped."))


async def _close(servers: Sequence[Server], running: Sequence[asyncio.Future[None]]) -> None:
    for one in servers:
        one.should_exit = True
    await asyncio.wait(running)
