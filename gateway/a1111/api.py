"""The routes of A1111's API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.a1111.answers import error_answer
from gateway.a1111.client import client_of
from gateway.a1111.drawing import Drawing
from gateway.a1111.lists import LISTS, page_config
from gateway.a1111.options import Remembered, as_a1111
from gateway.a1111.running import Running
from gateway.catalog.catalog import Catalog, Lists
from gateway.http.body import json_object
from gateway.http.json_answer import JsonAnswer
from gateway.jobs import GatewayError, Jobs, last_state
from worker.clients.foreign_fields import task_instead
from worker.errors import WorkerError
from worker.http.client import SafeHttpClient

logger = logging.getLogger(__name__)

PREFIX = "/sdapi/v1"
_REFRESH = ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings")
# What programs ask of ControlNet: none of it. Its units work in `alwayson_scripts`.
_CONTROLNET = {
    "version": {"version": 0},
    "settings": {"control_net_unit_count": 0},
    "model_list": {"model_list": []},
    "module_list": {"module_list": [], "module_detail": {}},
    "control_types": {"control_types": {}},
}
_FLAGS = {"api": True, "nowebui": True, "listen": False, "port": None, "api_auth": None}
_FOLDERS = ("data_dir", "ckpt", "ckpt_dir", "vae_dir", "lora_dir", "embeddings_dir")
_UNKNOWN_MEMORY = {"error": "unavailable: no worker runs"}
_MEMORY_PATIENCE = 10.0  # seconds

Json = Any
RouteFunction = Callable[[Request], Awaitable[Json]]


class NoSuchTask(GatewayError):
    """No task of the worker does what the route does."""

    status = 501


class NoSuchList(GatewayError):
    """A1111's API has no such list, or the gateway does not."""

    status = 404


class OnlyPost(GatewayError):
    """The route takes POST, as in A1111."""

    status = 405


class A1111Api:
    """The routes over a back."""

    def __init__(
        self,
        jobs: Jobs,
        catalog: Catalog,
        http: SafeHttpClient | None = None,
        remembered: Remembered | None = None,
    ) -> None:
        self._jobs = jobs
        self._catalog = catalog
        self._remembered = remembered or Remembered()
        self._running = Running()
        parts = (jobs, catalog, self._remembered, self._running, http or SafeHttpClient())
        self._drawing = Drawing(*parts)

    def routes(self) -> list[BaseRoute]:
        """All routes. The last ones answer for what there is not."""
        gets: dict[str, RouteFunction] = {
            f"{PREFIX}/options": self._get_options,
            f"{PREFIX}/progress": self._progress,
            f"{PREFIX}/memory": self._memory,
            f"{PREFIX}/cmd-flags": _flags,
            **{f"{PREFIX}/{name}": self._list(shape) for name, shape in LISTS.items()},
            **{f"/controlnet/{name}": _always(one) for name, one in _CONTROLNET.items()},
            "/config": self._list(page_config),
            "/queue/status": self._queue,
            "/internal/ping": _always({}),
        }
        drawing = self._drawing
        posts: dict[str, RouteFunction] = {
            "options": self._set_options,
            "txt2img": drawing.txt2img,
            "img2img": drawing.img2img,
            "extra-single-image": drawing.extra_single_image,
            "extra-batch-images": drawing.extra_batch_images,
            "interrogate": drawing.interrogate,
            "png-info": drawing.png_info,
            "interrupt": self._interrupt,
            "skip": self._skip,
            **dict.fromkeys(_REFRESH, self._refresh),
        }
        return [
            *(Route(path, _safe(one), methods=["GET"]) for path, one in gets.items()),
            *(
                Route(f"{PREFIX}/{name}", _safe(one), methods=["POST"])
                for name, one in posts.items()
            ),
            Route(PREFIX + "/{name:path}", _safe(_no_task), methods=["POST"]),
            Route(PREFIX + "/{name:path}", _safe(_no_list(posts))),
            Route("/controlnet/{name:path}", _safe(_no_task), methods=["POST"]),
        ]

    # Options -------------------------------------------------------------------------------------

    async def _get_options(self, request: Request) -> Json:
        """Programs ask for them to see whether the server is there: no worker starts for it."""
        lists = await self._catalog.lists(may_start=False)
        return as_a1111(self._remembered.of(client_of(request)), lists)

    async def _set_options(self, request: Request) -> Json:
        client, options = client_of(request), await json_object(request)
        lists = await self._catalog.lists(may_start=False)
        ignored = self._remembered.change(client, options, lists)
        if ignored:
            names = ", ".join(name[:40] for name in ignored[:10])
            logger.info("options of %s: %d without effect: %s", client.program, len(ignored), names)

    # Lists ---------------------------------------------------------------------------------------

    def _list(self, shape: Callable[[Lists], Json]) -> RouteFunction:
        async def answer(_request: Request) -> Json:
            return shape(await self._catalog.lists())

        return answer

    async def _refresh(self, _request: Request) -> Json:
        await self._catalog.refresh()

    async def _memory(self, _request: Request) -> Json:
        """The worker's memory; an endpoint that sleeps is not started for it."""
        unknown = {"ram": _UNKNOWN_MEMORY, "cuda": _UNKNOWN_MEMORY}
        if not await self._jobs.is_awake():
            return unknown
        job = await self._jobs.submit({"input": {"task": "health"}})
        try:
            state = await asyncio.wait_for(last_state(self._jobs, job.id), _MEMORY_PATIENCE)
        except asyncio.TimeoutError:
            await self._jobs.cancel(job.id)
            return unknown
        output = state.output if isinstance(state.output, dict) else {}
        engine = output.get("engine")
        return (engine.get("memory") if isinstance(engine, dict) else None) or unknown

    # Jobs that run -------------------------------------------------------------------------------

    async def _progress(self, request: Request) -> Json:
        skipped = request.query_params.get("skip_current_image", "").lower() in {"true", "1"}
        return self._running.progress(client_of(request), with_picture=not skipped)

    async def _queue(self, _request: Request) -> Json:
        return {"msg": "estimation", "queue_size": self._running.count(), "queue_eta": 0.0}

    async def _interrupt(self, request: Request) -> Json:
        client = client_of(request)
        stopped = self._running.interrupt(client)
        logger.info("%s interrupts %d jobs", client.program, stopped)
        return {}

    async def _skip(self, request: Request) -> Json:
        await self._interrupt(request)


async def _flags(_request: Request) -> Json:
    return {**_FLAGS, **dict.fromkeys(_FOLDERS)}


def _always(content: Json) -> RouteFunction:
    async def answer(_request: Request) -> Json:
        return content

    return answer


async def _no_task(request: Request) -> Json:
    name = request.url.path.removeprefix(f"{PREFIX}/").strip("/")[:80]
    sentence = task_instead(name)
    reason = f" {sentence[:1].upper()}{sentence[1:]}." if " " in sentence else ""
    raise NoSuchTask(f"POST {name!r} is not possible here.{reason}")


def _no_list(posts: Collection[str]) -> RouteFunction:
    async def answer(request: Request) -> Json:
        name = request.path_params["name"]
        if name in posts:
            raise OnlyPost(f"GET {name!r} is not possible: send POST.")
        raise NoSuchList(
            f"GET {name[:80]!r} is not possible here: docs/clients/compatibility.md has all routes."
        )

    return answer


def _safe(function: RouteFunction) -> Callable[[Request], Awaitable[Response]]:
    """The function with its answer as JSON, and its errors in A1111's form."""

    async def answer(request: Request) -> Response:
        try:
            return JsonAnswer(await function(request))
        except (GatewayError, WorkerError) as error:
            return error_answer(request, error)

    return answer
