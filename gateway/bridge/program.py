"""Runs the bridge: checks the endpoint, serves, and cancels waiting clients' jobs at its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from gateway.a1111.options import Remembered
from gateway.app import build
from gateway.bridge.job_log import LoggedJobs, NamesClient
from gateway.bridge.options import Options, read
from gateway.catalog.catalog import Catalog, CatalogTiming
from gateway.catalog.kept_file import cache_file
from gateway.endpoint.http import Address, HttpLimits, WrongEndpoint
from gateway.endpoint.jobs import Endpoint
from gateway.http.connections import ConnectionLimits, Server, server
from gateway.http.json_answer import JsonAnswer
from gateway.http.listen import listen
from gateway.jobs import GatewayError
from worker import log
from worker.config.as_written import as_meant
from worker.config.credentials import secret_values

EXIT_WRONG, EXIT_NO_CONNECTION = 2, 3  # as client.py

_ENDING = 20  # seconds that the cancels of the last jobs may take
_SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")  # those that this system has

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the bridge until a signal; returns the exit status."""
    options = read(arguments, environ)
    secrets = [*secret_values(environ), options.address.key]
    log.configure("INFO", _format(environ), filter(None, secrets))
    return asyncio.run(run(options))


def _format(environ: Mapping[str, str]) -> str:
    return "json" if as_meant(environ.get("LOG_FORMAT", "")).lower() == "json" else "text"


async def run(options: Options) -> int:
    """Serve until a signal; returns the exit status."""
    endpoint = Endpoint(options.address)
    try:
        health = await _check(options.address)
        sockets = listen(options.host, options.port)
    except GatewayError as error:
        return _say(str(error), EXIT_WRONG if _is_wrong(error) else EXIT_NO_CONNECTION)
    except OSError as error:
        return _say(
            f"Port {options.port} of {options.host} cannot be used ({error.strerror}): stop the"
            " program that uses it, perhaps A1111 itself, or choose another port with --port.",
            EXIT_WRONG,
        )
    else:
        _say(welcome(options, sockets, health), 0)
        return await _serve(options, endpoint, sockets)
    finally:
        await endpoint.close()


async def _check(address: Address) -> dict[str, Any]:
    """Ask whether the address and the key are right, which costs nothing."""
    endpoint = Endpoint(address, limits=HttpLimits(attempts=2))
    try:
        return await endpoint.health()
    finally:
        await endpoint.close()


async def _serve(options: Options, endpoint: Endpoint, sockets: list[socket.socket]) -> int:
    jobs = LoggedJobs(endpoint, options.price)
    catalog = Catalog(jobs, cache_file(options.address.url), CatalogTiming())
    remembered = Remembered(cache_file(options.address.url, "options"))
    app = build(jobs, options.access, (Route("/ping", _ping),), catalog, remembered)
    limits = ConnectionLimits(ending=_ENDING)
    running = server(NamesClient(app), options.host, options.port, limits)
    _end_on_signals(running, endpoint)
    await running.serve(sockets=sockets)
    await _cancel_the_rest(jobs)
    logger.info("the bridge has ended")
    return 0


async def _ping(_request: Request) -> JsonAnswer:
    return JsonAnswer({"ready": True})


def _end_on_signals(running: Server, endpoint: Endpoint) -> None:
    """The first signal ends the bridge in order; a second one does not wait for the cancels."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        if running.should_exit:
            logger.warning("the bridge ends at once: jobs may run on, see RunPod's console")
            # What it then reports are only its requests, which are cut off.
            logging.getLogger("uvicorn.error").disabled = True
            running.force_exit = True
            return
        running.should_exit = True
        count = endpoint.end()
        logger.info("the bridge ends; jobs of waiting clients that are cancelled: %d", count)

    def receive(_number: int, _frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(end)

    for name in _SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), receive)


async def _cancel_the_rest(jobs: LoggedJobs) -> None:
    """Once more, for those whose cancel did not arrive before."""

    async def cancel(job_id: str) -> None:
        try:
            await asyncio.wait_for(jobs.cancel(job_id), _ENDING)
        except (GatewayError, asyncio.TimeoutError) as error:
            logger.error(  # noqa: TRY400 - the sentence is enough
                "job %s may run on and cost money: cancel it in RunPod's console (%s)",
                job_id,
                error or "no answer",
            )

    await asyncio.gather(*map(cancel, list(jobs.waited_for)))


def _is_wrong(error: GatewayError) -> bool:
    return isinstance(error, WrongEndpoint) or error.status < 500  # noqa: PLR2004 - HTTP's classes


def _say(text: str, status: int) -> int:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    return status


def welcome(options: Options, sockets: Sequence[socket.socket], health: Mapping[str, Any]) -> str:
    """What the user enters in which program."""
    port = sockets[0].getsockname()[1]
    name = options.host if options.host not in {"0.0.0.0", "::", ""} else "127.0.0.1"  # noqa: S104
    url = f"http://{f'[{name}]' if ':' in name else name}:{port}"
    access = options.access
    logins = {"the user and password of GATEWAY_LOGIN": access.login, "GATEWAY_TOKEN": access.token}
    login = " or ".join(name for name, secret in logins.items() if secret)
    key = "GATEWAY_TOKEN" if access.token else "needs GATEWAY_TOKEN" if login else "any text"
    return f"""\
The bridge listens on {url}; jobs go to {options.address.url}.
  A1111's clients   URL       {url}
  OpenAI's clients  base URL  {url}/v1   (API key: {key})
  RunPod's clients  base URL  {url}/v2
  Browser           page      {url}/
Login of each client: {login or "none"}. Your RunPod key stays in this program.
Endpoint: {_workers(health)}. The first picture can take minutes while a worker starts.
Ctrl-C ends the bridge and cancels the jobs of clients that wait."""


def _workers(health: Mapping[str, Any]) -> str:
    counts = health.get("workers")
    names = ("running", "idle", "initializing", "throttled")
    found = {name: counts.get(name) for name in names} if isinstance(counts, Mapping) else {}
    parts = [f"{count} {name}" for name, count in found.items() if isinstance(count, int)]
    return f"workers: {', '.join(parts)}" if parts else "it answers"
