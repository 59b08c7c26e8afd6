"""RunPod's routes over a queue of jobs, so that RunPod's clients work on the local machine."""

from __future__ import annotations

import json
from collections import OrderedDict
from itertools import islice
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from gateway.call import finished_within, longest_request, settled, unless_hung_up
from gateway.http.body import json_object
from gateway.http.json_answer import JsonAnswer
from gateway.jobs import BadRequest, GatewayError, Jobs, JobState, KeepsJobs, NotPossible
from worker.shown import shown_name
from worker.spelling import near_matches

# RunPod's `?wait=`, in milliseconds.
_SHORTEST_WAIT, _USUAL_WAIT, _LONGEST_WAIT = 1_000, 90_000, 300_000
# Seconds that /stream waits for news; runpod-python gives a GET 10 s.
_STREAM_HOLD = 5.0
_STREAMED_JOBS = 1000  # of which /stream has returned chunks, or the output, once

# RunPod's fields of a request. Others have no effect, and may be new ones.
_BESIDE = frozenset({"input", "webhook", "policy", "s3Config"})
_CLOSE = 0.8  # how similar another name is that was probably meant as one of them
_MOST_COMPARED = 20

_ANY = ["GET", "POST", "PUT", "DELETE"]


class NoBatches(GatewayError):
    """RunPod's batch API was asked for."""

    status = 404


class RunPodApi:
    """The routes below `/` and below `/v2/ENDPOINT/`."""

    def __init__(self, jobs: Jobs, *, stream_hold: float = _STREAM_HOLD) -> None:
        self._jobs = jobs
        self._stream_hold = stream_hold
        self._streamed: OrderedDict[str, None] = OrderedDict()

    def routes(self) -> list[BaseRoute]:
        """All routes."""
        own = [
            Route("/run", self._run, methods=["POST"]),
            Route("/runsync", self._runsync, methods=["POST"]),
            Route("/status/{job_id}", self._status, methods=["GET", "POST"]),
            Route("/status-sync/{job_id}", self._status_sync, methods=["GET", "POST"]),
            Route("/stream/{job_id}", self._stream, methods=["GET", "POST"]),
            Route("/cancel/{job_id}", self._cancel, methods=["POST"]),
            Route("/retry/{job_id}", self._retry, methods=["POST"]),
            Route("/health", self._health),
            Route("/purge-queue", self._purge, methods=["POST"]),
            *(Route(path, _no_batches, methods=_ANY) for path in ("/batch", "/batch/{rest:path}")),
        ]
        return [*own, Mount("/v2/{endpoint_id}", routes=own)]

    async def _run(self, request: Request) -> Response:
        return _brief(await self._jobs.submit(_checked(await json_object(request))))

    async def _runsync(self, request: Request) -> Response:
        """Wait for the job's end; after `?wait=` milliseconds answer with its id."""
        wait = _wait(request)
        body = _checked(await json_object(request))
        return _whole(await finished_within(request, self._jobs, body, wait))

    async def _status(self, request: Request) -> Response:
        return _whole(await self._jobs.state(request.path_params["job_id"]))

    async def _status_sync(self, request: Request) -> Response:
        """As /status, but it waits for the job's end as /runsync does."""
        return _whole(await settled(self._jobs, request.path_params["job_id"], _wait(request)))

    async def _stream(self, request: Request) -> Response:
        """What the job has sent to its stream since the last call.

        Of a job that has sent nothing it is the job's output, once. The call waits a few seconds
        for news, because npm's runpod-sdk asks again at once.
        """
        asking = self._jobs.stream(request.path_params["job_id"], self._stream_hold)
        streamed = await unless_hung_up(request, asking)
        state, chunks = streamed.state, streamed.chunks
        is_new = state.id not in self._streamed
        if not chunks and is_new and state.is_final and state.output is not None:
            chunks = [{"output": state.output}]
        if chunks and is_new:
            self._streamed[state.id] = None
            if len(self._streamed) > _STREAMED_JOBS:
                self._streamed.popitem(last=False)
        error = {} if state.error is None else {"error": state.error}
        return JsonAnswer({"id": state.id, "status": state.status, "stream": chunks, **error})

    async def _cancel(self, request: Request) -> Response:
        return _brief(await self._jobs.cancel(request.path_params["job_id"]))

    async def _retry(self, request: Request) -> Response:
        if not isinstance(self._jobs, KeepsJobs):
            raise NotPossible("A job cannot be retried here: send it again.")
        return _brief(await self._jobs.retry(request.path_params["job_id"]))

    async def _health(self, _request: Request) -> Response:
        return JsonAnswer(await self._jobs.health())

    async def _purge(self, _request: Request) -> Response:
        return JsonAnswer({"removed": await self._jobs.purge(), "status": "completed"})


async def _no_batches(_request: Request) -> Response:
    """RunPod runs batches on workers of their own, in their own time; there are none here."""
    raise NoBatches(
        "RunPod's batch API exists only at https://api.runpod.ai/v2/ENDPOINT/batch. Here, send each"
        ' input to /run, or up to 64 of them as one job: {"input": {"task": "batch", "inputs":'
        " [...]}}."
    )


def _brief(state: JobState) -> Response:
    return JsonAnswer({"id": state.id, "status": state.status})


def _whole(state: JobState) -> Response:
    return JsonAnswer(state.as_json())


def _wait(request: Request) -> float:
    """`?wait=` in seconds, within RunPod's limits.

    Behind a load balancer it is as long as a request may take: the next request may reach another
    worker, which does not know the job.

    Raises:
        BadRequest: it is not a whole number.
    """
    longest = longest_request(request)
    if longest is not None and "wait" not in request.query_params:
        return longest
    text = request.query_params.get("wait", str(_USUAL_WAIT))
    if not (text.isascii() and text.isdecimal() and len(text) < 10):  # noqa: PLR2004 - digits
        raise BadRequest(f"wait = {text[:40]!r} must be milliseconds, such as 90000.")
    return min(max(int(text), _SHORTEST_WAIT), _LONGEST_WAIT) / 1000


def _checked(body: dict[str, Any]) -> dict[str, Any]:
    """The body, if it has a job's input.

    Raises:
        BadRequest: it has none, or a misspelt field beside it, which RunPod would ignore.
    """
    job_input = body.get("input")
    if isinstance(job_input, dict):
        for name in islice(body.keys() - _BESIDE, _MOST_COMPARED):
            if near := near_matches(name, _BESIDE, 1, cutoff=_CLOSE):
                raise BadRequest(f"{shown_name(name)} is no field: did you mean `{near[0]}`?")
        return body
    example = 'send {"input": {"prompt": "a fox"}}'
    if "input" in body:
        raise BadRequest(f"input = {json.dumps(job_input)[:80]} is not an object: {example}.")
    raise BadRequest(f"The body has no `input`: {example}.")
