"""Runs a job for an HTTP request. A client that hangs up cancels its job.

Starlette's `@app.middleware("http")` and `BaseHTTPMiddleware` hide the hang-up, so the app has
neither.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import Request

from gateway.jobs import GatewayError, Jobs, JobState, KeepsJobs, TookTooLong, last_state

logger = logging.getLogger(__name__)
T = TypeVar("T")


class HungUp(Exception):
    """The client closed the connection; its job was cancelled."""


async def states(
    request: Request, jobs: Jobs, job_input: Mapping[str, Any]
) -> AsyncGenerator[JobState, None]:
    """Queue a job and yield its states; the last one is final.

    The job is cancelled if the client hangs up, if the caller stops iterating, if the server ends,
    and after `app.state.longest_request` seconds. The request's body must be read before.

    Raises:
        HungUp: the client hung up.
        GatewayError: the back failed, or the time limit has passed.
    """
    gone = asyncio.ensure_future(_hang_up(request))
    submitted = asyncio.ensure_future(jobs.submit({"input": job_input}))
    longest, clock = longest_request(request), asyncio.get_running_loop().time
    deadline = None if longest is None else clock() + longest
    is_over = False
    try:
        state = await _queued(submitted, gone)
        async with aclosing(jobs.follow(state.id)) as following:
            while not is_over:
                left = None if deadline is None else deadline - clock()
                state = await _next_state(following, gone, left)
                is_over = state.is_final
                yield state
        if isinstance(jobs, KeepsJobs):
            jobs.answered(state.id)
    finally:
        gone.cancel()
        if not is_over:
            await asyncio.shield(_cancel(jobs, submitted))


async def finished(request: Request, jobs: Jobs, job_input: Mapping[str, Any]) -> JobState:
    """As `states`, but only the last state."""
    return [state async for state in states(request, jobs, job_input)][-1]


async def finished_within(
    request: Request, jobs: Jobs, job_request: Mapping[str, Any], seconds: float
) -> JobState:
    """Queue a job (`{"input": {...}, "webhook": ...}`) and return its last state.

    After `seconds` its newest state is returned, and it goes on: the client has its id then. A
    client that hangs up before cannot get the answer, so its job is cancelled, unless a webhook
    gets the answer.

    Raises:
        HungUp, GatewayError: as `states`.
    """
    gone = asyncio.ensure_future(_hang_up(request))
    submitted = asyncio.ensure_future(jobs.submit(job_request))
    goes_on = bool(job_request.get("webhook"))
    longest = longest_request(request)
    seconds = seconds if longest is None else min(seconds, longest)
    try:
        job_id = (await (asyncio.shield(submitted) if goes_on else _queued(submitted, gone))).id
        ending = asyncio.ensure_future(settled(jobs, job_id, seconds))
        try:
            either: set[asyncio.Future[Any]] = {ending, gone}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                raise HungUp
            state = ending.result()
        finally:
            await _stop(ending)
        goes_on = True
        if state.is_final and isinstance(jobs, KeepsJobs):
            jobs.answered(job_id)
        return state
    finally:
        gone.cancel()
        if not goes_on:
            await asyncio.shield(_cancel(jobs, submitted))


async def unless_hung_up(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns; a client that hangs up ends it. The request's body must be read.

    Raises:
        HungUp: the client hung up.
    """
    gone, working = asyncio.ensure_future(_hang_up(request)), asyncio.ensure_future(work)
    try:
        either: set[asyncio.Future[Any]] = {gone, working}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HungUp
        return working.result()
    finally:
        gone.cancel()
        await _stop(working)


async def settled(jobs: Jobs, job_id: str, seconds: float) -> JobState:
    """The job's last state, or its newest one after `seconds`.

    Raises:
        GatewayError: there is no such job, or the back failed.
    """
    state = await jobs.state(job_id)
    if state.is_final:
        return state
    ending = asyncio.ensure_future(last_state(jobs, job_id))
    try:
        await asyncio.wait({ending}, timeout=seconds)
        return ending.result() if ending.done() else await jobs.state(job_id)
    finally:
        await _stop(ending)


async def _queued(submitted: asyncio.Future[JobState], gone: asyncio.Future[None]) -> JobState:
    """The job, once it is queued.

    Raises:
        HungUp: the client hung up before.
    """
    either: set[asyncio.Future[Any]] = {submitted, gone}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not submitted.done():
        raise HungUp
    return submitted.result()


async def _next_state(
    following: AsyncIterator[JobState], gone: asyncio.Future[None], seconds: float | None
) -> JobState:
    coming = asyncio.ensure_future(anext(following))
    try:
        either: set[asyncio.Future[Any]] = {coming, gone}
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if coming.done():
            return coming.result()
        if gone.done():
            raise HungUp
        raise TookTooLong(
            "The picture was not ready before the time limit of a request here, so its job is"
            " cancelled: ask for fewer steps, a smaller size or fewer pictures, or send the job to"
            " /run and ask /status."
        )
    finally:
        await _stop(coming)


async def _stop(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def longest_request(request: Request) -> float | None:
    """Seconds that a request may take where this server runs; None: no limit."""
    longest: float | None = getattr(request.app.state, "longest_request", None)
    return longest


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(jobs: Jobs, submitted: asyncio.Future[JobState]) -> None:
    """Cancel the job, if there is one; one that is not sent yet is not sent any more."""
    submitted.cancel()
    try:
        state = await submitted
    except asyncio.CancelledError:
        logger.info("a job was not sent: nobody waits for it any more")
        return
    except GatewayError as error:
        logger.info("no job is cancelled: %s", error)
        return
    try:
        await jobs.cancel(state.id)
    except GatewayError as error:
        logger.warning("a job that nobody waits for is not cancelled: %s", error)
    else:
        logger.info("job %s is cancelled: nobody waits for it any more", state.id)
