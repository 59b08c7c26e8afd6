"""Writes a line for each job: which client sent it, what it was, how long it took."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.endpoint.jobs import Endpoint
from gateway.jobs import JobState, Streamed
from worker.shown import shown

logger = logging.getLogger(__name__)

_client: ContextVar[str] = ContextVar("client", default="the bridge")
_LONGEST_ERROR = 500  # characters
_MOST = 10_000  # jobs whose line is not written yet: a client may never read the end of a job


class NamesClient:
    """ASGI middleware that keeps who sent a request, for the lines about its job."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note the client."""
        if scope["type"] == "http":
            agent = Headers(scope=scope).get("user-agent", "").partition(" ")[0]
            _client.set(f"{shown(agent[:40])} by {shown(scope['path'])}")
        await self._app(scope, receive, send)


@dataclass
class _Line:
    client: str
    what: str


class LoggedJobs:
    """An endpoint's jobs, with a line in the log for each that ends.

    Args:
        price: dollars for a second of work; None: not known.
    """

    def __init__(self, endpoint: Endpoint, price: float | None = None) -> None:
        self._endpoint = endpoint
        self._price = price
        self._lines: dict[str, _Line] = {}
        self.waited_for: set[str] = set()

    async def submit(self, request: Mapping[str, Any]) -> JobState:
        """Queue a job."""
        state = await self._endpoint.submit(request)
        line = _Line(_client.get(), what_it_is(request.get("input")))
        if len(self._lines) >= _MOST:
            del self._lines[next(iter(self._lines))]
        self._lines[state.id] = line
        logger.info("job %s is queued: %s, from %s", state.id, line.what, line.client)
        return self._seen(state)

    async def state(self, job_id: str) -> JobState:
        """The job now."""
        return self._seen(await self._endpoint.state(job_id))

    async def follow(self, job_id: str) -> AsyncGenerator[JobState, None]:
        """The job now, then each change of it."""
        self.waited_for.add(job_id)
        async with aclosing(self._endpoint.follow(job_id)) as following:
            async for state in following:
                yield self._seen(state)

    async def stream(self, job_id: str, hold: float) -> Streamed:
        """What the job has sent to its stream since the last call."""
        streamed = await self._endpoint.stream(job_id, hold)
        self._seen(streamed.state)
        return streamed

    async def cancel(self, job_id: str) -> JobState:
        """Cancel the job."""
        return self._seen(await self._endpoint.cancel(job_id))

    async def purge(self) -> int:
        """Remove all jobs that wait."""
        return await self._endpoint.purge()

    async def health(self) -> dict[str, Any]:
        """RunPod's numbers of jobs and workers."""
        return await self._endpoint.health()

    async def is_awake(self) -> bool:
        """Whether a worker could take a job now."""
        return await self._endpoint.is_awake()

    def _seen(self, state: JobState) -> JobState:
        if state.is_final:
            self.waited_for.discard(state.id)
            line = self._lines.pop(state.id, None)
            if line:
                times = self._times(state)
                why = f": {state.error[:_LONGEST_ERROR]}" if state.error else ""
                logger.info("job %s: %s%s, %s%s", state.id, state.status, times, line.what, why)
        return state

    def _times(self, state: JobState) -> str:
        text = "" if state.delay_ms is None else f", waited {state.delay_ms / 1000:.1f} s"
        if state.execution_ms is None:
            return text
        seconds = state.execution_ms / 1000
        cost = "" if self._price is None else f" (about ${seconds * self._price:.4f})"
        return f"{text}, worked {seconds:.1f} s{cost}"


def what_it_is(job_input: object) -> str:
    """The kind of a job in a few words, without its prompt."""
    if not isinstance(job_input, Mapping):
        return "no object"
    if "openai_route" in job_input:
        return shown(job_input["openai_route"])
    task = job_input.get("task", "txt2img")
    width, height = job_input.get("width"), job_input.get("height")
    size = f" {width}x{height}" if isinstance(width, int) and isinstance(height, int) else ""
    count = job_input.get("batch_size", 1)
    many = f" x {count}" if isinstance(count, int) and count > 1 else ""
    return f"{task if isinstance(task, str) and task.isidentifier() else shown(task)}{size}{many}"
