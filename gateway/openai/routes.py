"""OpenAI's routes: /v1/images/generations, /v1/images/edits and /v1/models."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from gateway.call import finished, states
from gateway.catalog.catalog import Catalog
from gateway.http.guard import Refused
from gateway.http.json_answer import JsonAnswer
from gateway.jobs import GatewayError, Jobs, JobState
from gateway.openai.answers import JobFailed, answer_of, error_object, failure_of
from gateway.openai.bucket import with_base64
from gateway.openai.events import EventResponse, Events, is_drawing
from gateway.openai.form import body_of
from worker.errors import InvalidInput, ModelNotFound
from worker.http.client import SafeHttpClient
from worker.job.problems import check_size
from worker.translation import openai_images
from worker.translation.openai_images import EDITS, GENERATIONS, MODELS, ServedModels

logger = logging.getLogger(__name__)

RouteFunction = Callable[[Request], Awaitable[Response]]


class OpenAIImages:
    """The routes below `/v1`, and below `/v2/ENDPOINT/openai/v1`, which is RunPod's address."""

    def __init__(self, jobs: Jobs, catalog: Catalog, http: SafeHttpClient | None = None) -> None:
        self._jobs = jobs
        self._catalog = catalog
        self._http = http or SafeHttpClient()

    def routes(self) -> list[BaseRoute]:
        """All routes; those of `/v2` must come before RunPod's own."""
        generate = functools.partial(self._images, GENERATIONS)
        edit = functools.partial(self._images, EDITS)
        own = [
            Route(GENERATIONS, _answered(generate), methods=["POST"]),
            Route(EDITS, _answered(edit), methods=["POST"]),
            Route(MODELS, _answered(self._models)),
            Route(f"{MODELS}/{{model:path}}", _answered(self._model)),
            Route("/v1/{rest:path}", _unknown, methods=["GET", "POST", "DELETE"]),
        ]
        return [*own, Mount("/v2/{endpoint_id}/openai", routes=own)]

    # Models --------------------------------------------------------------------------------------

    async def _models(self, _request: Request) -> Response:
        served = await self._served()
        return JsonAnswer({"object": "list", "data": [_model(one, served) for one in served.ids()]})

    async def _model(self, request: Request) -> Response:
        name, served = request.path_params["model"], await self._served()
        if name not in served.ids():
            raise served.unknown(name)
        return JsonAnswer(_model(name, served))

    async def _served(self) -> ServedModels:
        """What the back has; a worker that sleeps is not started for it."""
        lists = await self._catalog.lists(may_start=False)
        templates = {str(one.get("template")): str(one["name"]) for one in lists.templates}
        return ServedModels(templates, [str(one["name"]) for one in lists.models])

    # Pictures ------------------------------------------------------------------------------------

    async def _images(self, route: str, request: Request) -> Response:
        body = await body_of(request)
        check_size(body)  # here, because the worker's error would not have OpenAI's form
        asked = openai_images.read(route, body)  # refuses what is wrong before a worker is paid
        job = {"openai_route": route, "openai_input": openai_images.for_queue(body)}
        if not asked.stream:
            answer = answer_of(await finished(request, self._jobs, job))
            self._catalog.learn(answer)
            if asked.job.get("output", {}).get("delivery", "base64") == "base64":
                answer = await with_base64(self._http, answer)
            return JsonAnswer(answer)
        kind = "image_edit" if route == EDITS else "image_generation"
        events = Events(kind, str(body.get("size") or "auto"), asked.partial_images)
        return await self._stream(events, states(request, self._jobs, job))

    async def _stream(self, events: Events, following: AsyncGenerator[JobState, None]) -> Response:
        """The events from the first picture on; what goes wrong before has an HTTP status."""
        handed_over = False
        try:
            async for state in following:
                if state.is_final:
                    self._catalog.learn(answer_of(state))
                if state.is_final or is_drawing(state):
                    handed_over = True
                    return EventResponse(events, state, following)
        finally:
            if not handed_over:
                await following.aclose()
        raise JobFailed(500, error_object("The job ended without a result.", 500))


def _model(name: str, served: ServedModels) -> Mapping[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": served.kind(name),
    }


def _answered(function: RouteFunction) -> RouteFunction:
    """The function, whose errors have OpenAI's shape."""

    @functools.wraps(function)
    async def answered(request: Request) -> Response:
        try:
            return await function(request)
        except (GatewayError, InvalidInput, JobFailed, ModelNotFound, Refused) as error:
            failed = failure_of(error)
            logger.warning("HTTP %d: %s", failed.status, failed)
            return failed.response()

    return answered


async def _unknown(request: Request) -> Response:
    served = ", ".join(openai_images.ROUTES)
    text = f"{request.url.path[:200]} is not served: this server has {served} of OpenAI's API."
    return JobFailed(404, error_object(text, 404)).response()
