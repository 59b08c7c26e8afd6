"""Runs a job for an HTTP request. A client that hangs up cancels its job.

Starlette's `@app.middleware("http")` and `BaseHTTPMiddleware` hide the hang-up, so the app has
neither.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import Any

from starlette.requests import Request

from gateway.jobs import GatewayError, Jobs, JobState

logger = logging.getLogger(__name__)


class HungUp(Exception):
    """The client closed the connection; its job was cancelled."""


async def states(
    request: Request, jobs: Jobs, job_input: Mapping[str, Any]
) -> AsyncGenerator[JobState, None]:
    """Queue a job and yield its states; the last one is final.

    The job is cancelled if the client hangs up, if the caller stops iterating, and if the server
    ends. The request's body must be read before.

    Raises:
        HungUp: the client hung up.
        GatewayError: the back failed.
    """
    gone = asyncio.ensure_future(_hang_up(request))
    # Not ended by a hang-up: without its id the job could not be cancelled.
    submitted = asyncio.ensure_future(jobs.submit({"input": job_input}))
    is_over = False
    try:
        state = await asyncio.shield(submitted)
        async with aclosing(jobs.follow(state.id)) as following:
            while not is_over:
                state = await _next_state(following, gone)
                is_over = state.is_final
                yield state
    finally:
        gone.cancel()
        if not is_over:
            await asyncio.shield(_cancel(jobs, submitted))


async def finished(request: Request, jobs: Jobs, job_input: Mapping[str, Any]) -> JobState:
    """As `states`, but only the last state."""
    return [state async for state in states(request, jobs, job_input)][-1]


async def _next_state(following: AsyncIterator[JobState], gone: asyncio.Future[None]) -> JobState:
    coming = asyncio.ensure_future(anext(following))
    try:
        either: set[asyncio.Future[Any]] = {coming, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if coming.done():
            return coming.result()
        raise HungUp
    finally:
        if not coming.done():
            coming.cancel()
            with suppress(asyncio.CancelledError):
                await coming


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(jobs: Jobs, submitted: asyncio.Future[JobState]) -> None:
    try:
        state = await submitted
        await jobs.cancel(state.id)
    except GatewayError as error:
        logger.warning("a job that nobody waits for is not cancelled: %s", error)
    else:
        logger.info("job %s is cancelled: nobody waits for it any more", state.id)
