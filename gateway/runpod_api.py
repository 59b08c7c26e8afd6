"""RunPod's routes over a queue of jobs, so that RunPod's clients work on the local machine."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from gateway.body import json_object
from gateway.call import finished
from gateway.jobs import BadRequest, Jobs


class RunPodApi:
    """The routes below `/` and below `/v2/ENDPOINT/`."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def routes(self) -> list[BaseRoute]:
        """All routes."""
        own = [
            Route("/run", self._run, methods=["POST"]),
            Route("/runsync", self._runsync, methods=["POST"]),
            Route("/status/{job_id}", self._status, methods=["GET", "POST"]),
            Route("/cancel/{job_id}", self._cancel, methods=["POST"]),
            Route("/health", self._health),
            Route("/purge-queue", self._purge, methods=["POST"]),
        ]
        return [*own, Mount("/v2/{endpoint_id}", routes=own)]

    async def _run(self, request: Request) -> Response:
        state = await self._jobs.submit(_checked(await json_object(request)))
        return JSONResponse({"id": state.id, "status": state.status})

    async def _runsync(self, request: Request) -> Response:
        body = _checked(await json_object(request))
        return JSONResponse((await finished(request, self._jobs, body["input"])).as_json())

    async def _status(self, request: Request) -> Response:
        return JSONResponse((await self._jobs.state(request.path_params["job_id"])).as_json())

    async def _cancel(self, request: Request) -> Response:
        state = await self._jobs.cancel(request.path_params["job_id"])
        return JSONResponse({"id": state.id, "status": state.status})

    async def _health(self, _request: Request) -> Response:
        return JSONResponse(await self._jobs.health())

    async def _purge(self, _request: Request) -> Response:
        return JSONResponse({"removed": await self._jobs.purge(), "status": "completed"})


def _checked(body: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(body.get("input"), dict):
        raise BadRequest('The body has no object `input`: send {"input": {"prompt": "a fox"}}.')
    return body
