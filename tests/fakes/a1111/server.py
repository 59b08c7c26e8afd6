"""The HTTP surface of the fake A1111: its routes, and `/_fake` for the tests."""

import asyncio
import base64
import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from safetensors import SafetensorError

from fakes.a1111 import extensions
from fakes.a1111.engine import Engine
from fakes.a1111.extras import Extras, read_extras
from fakes.a1111.faults import Faults
from fakes.a1111.picture import png
from fakes.a1111.request import ApiError, Params, engine_error, read_request
from fakes.a1111.shape import refuse_before_queue
from fakes.recorded import recorded

STATIC_ROUTES = (
    "samplers",
    "schedulers",
    "upscalers",
    "latent-upscale-modes",
    "prompt-styles",
    "scripts",
    "script-info",
)
CUDA = {"system": {"free": 24 << 30, "used": 1 << 30, "total": 25 << 30}}  # with FAKE_A1111_CUDA


class Routes:
    """The endpoints. What needs the GPU goes through one thread, first come, first served."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.faults = engine.faults
        self.extras = Extras(engine.data_dir, engine.options, engine.faults)
        self._queue = ThreadPoolExecutor(max_workers=1)
        self._next_came = asyncio.Event()  # after the last request of a picture

    async def _in_turn(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._queue, work, *args)

    def _queued(self, work: Callable[[], None]) -> Callable[[], Any]:
        async def endpoint() -> None:
            await self._in_turn(work)

        return endpoint

    def add_to(self, app: FastAPI) -> None:
        """Add all routes under /sdapi/v1."""
        engine = self.engine
        gets: dict[str, Callable[..., Any]] = {
            "progress": self._progress,
            "options": engine.options.shown,
            "sd-models": lambda: [checkpoint.item() for checkpoint in engine.checkpoints.listed],
            "sd-vae": lambda: [
                {"model_name": name, "filename": str(path)} for name, path in engine.vaes().items()
            ],
            "embeddings": self._embeddings,
        }
        memory = recorded("get_memory") | ({"cuda": CUDA} if os.getenv("FAKE_A1111_CUDA") else {})
        gets["memory"] = lambda: memory
        gets |= {name: lambda n=name: recorded(f"get_{n}") for name in STATIC_ROUTES}
        gets["scripts"] = _scripts
        if parts := os.getenv("FAKE_A1111_PARTS"):  # of the worker's extension
            gets["worker-parts"] = lambda: parts.split(",")
        posts: dict[str, Callable[..., Any]] = {
            "txt2img": self.draws("txt2img"),
            "img2img": self.draws("img2img"),
            "extra-single-image": self.enlarge,
            "interrogate": self.describe,
            "options": self.set_options,
            "interrupt": self.interrupt,
            "refresh-checkpoints": self._queued(engine.checkpoints.refresh),
            "refresh-vae": lambda: None,
            "refresh-embeddings": self._queued(engine.refresh_embeddings),
        }
        if extensions.installed():
            app.add_api_route("/adetailer/v1/ad_model", extensions.detectors)
            app.add_api_route("/controlnet/model_list", engine.extensions.model_list)
        if engine.loras:
            loras = engine.loras
            gets["loras"] = lambda: [lora.item() for lora in loras.listed]
            posts["refresh-loras"] = loras.refresh
        for method, routes in (("GET", gets), ("POST", posts)):
            for name, endpoint in routes.items():
                app.add_api_route(
                    f"/sdapi/v1/{name}", endpoint, methods=[method], response_model=None
                )

    def draws(self, route: str) -> Callable[[Request], Any]:
        """The endpoint of txt2img or img2img."""

        async def endpoint(request: Request) -> Response:
            if self.faults.take("no_route"):
                return JSONResponse({"detail": "Not Found"}, 404)
            params = read_request(request.state.body, route)
            refuse_before_queue(params)
            if self.faults.take("drop"):
                request.state.transport.abort()
            self._next_came.set()
            self._next_came = next_came = asyncio.Event()
            drawn = await self._in_turn(self._draw, params, request.state.row)
            # A1111 encodes after it has released its lock.
            if longest := self.faults.seconds("encoding_waits"):
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(next_came.wait(), longest)
            await asyncio.sleep(self.faults.seconds("slow_encoding") * len(drawn["images"]))
            return self._spoilt(request, JSONResponse(drawn))

        return endpoint

    def _spoilt(self, request: Request, answer: Response) -> Response:
        """The answer after the faults of the connection."""
        whole = bytes(answer.body)
        if fault := self.faults.take("odd_answer"):
            return Response(fault["body"], 200, media_type="application/json")
        if self.faults.take("cut_answer"):
            pieces = _cut(whole, request.state.transport)
        elif fault := self.faults.take("trickle_answer"):
            pieces = _trickled(whole, fault["seconds"])
        else:
            return answer
        return StreamingResponse(pieces, 200, dict(answer.headers))

    def _draw(self, params: Params, row: dict[str, Any]) -> dict[str, Any]:
        """Compute, and note when in the log of requests."""
        row["began"] = time.time()
        try:
            return self.engine.draw(params)
        finally:
            row["ended"] = time.time()

    async def enlarge(self, request: Request) -> Response:
        params = read_extras(request.state.body)
        return JSONResponse(await self._in_turn(self.extras.enlarge, params))

    async def describe(self, request: Request) -> Response:
        return JSONResponse(await self._in_turn(self.extras.describe, request.state.body))

    async def set_options(self, request: Request) -> None:
        changes = request.state.body
        self.engine.refuse_unknown_checkpoint(changes)
        if "sd_model_checkpoint" in changes:
            await self._in_turn(self.engine.set_options, changes)
        else:
            self.engine.set_options(changes)

    async def interrupt(self) -> dict[str, Any]:
        self.engine.progress.stop.set()
        return {}

    def _progress(self, *, skip_current_image: bool = False) -> dict[str, Any]:
        shows = self.engine.options.get("live_previews_enable") and self.engine.progress.step
        drawn = png(512, 512, b"\x40\x80\xc0", "") if shows and not skip_current_image else None
        return self.engine.progress.shown(drawn and base64.b64encode(drawn).decode())

    def _embeddings(self) -> dict[str, Any]:
        facts = dict.fromkeys(("step", "sd_checkpoint", "sd_checkpoint_name"))
        facts |= {"shape": 768, "vectors": 1}
        return {"loaded": dict.fromkeys(self.engine.embeddings, facts), "skipped": {}}


async def _cut(whole: bytes, transport: Any) -> AsyncIterator[bytes]:
    """Half of an answer, and then the end of the connection."""
    yield whole[: len(whole) // 2]
    await asyncio.sleep(0.1)
    transport.abort()


async def _trickled(whole: bytes, seconds: float, pieces: int = 20) -> AsyncIterator[bytes]:
    """An answer in small pieces."""
    size = len(whole) // pieces + 1
    for at in range(0, len(whole), size):
        await asyncio.sleep(seconds / pieces)
        yield whole[at : at + size]


def _scripts() -> dict[str, list[str]]:
    listed: dict[str, list[str]] = recorded("get_scripts")
    return listed | {"txt2img": listed["txt2img"] + extensions.installed()}


def _as_answer(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, ApiError):
        error = engine_error(type(error).__name__, str(error))
    return JSONResponse(error.body, error.status)


def _add_control(app: FastAPI, faults: Faults) -> None:
    """Keep a log of the requests, and let tests read it and switch faults."""
    log: list[dict[str, Any]] = []

    @app.middleware("http")
    async def keep(request: Request, call_next: Any) -> Response:
        raw = await request.body()
        request.state.body = body = json.loads(raw) if raw else None
        # uvicorn's own object; the only way to close a connection without an answer
        request.state.transport = request.receive.__self__.transport
        path = request.url.path
        if not path.startswith("/_fake"):
            row = {"method": request.method, "path": path, "body": body, "time": time.time()}
            log.append(row)
            request.state.row = row
            answer = await call_next(request)
            row["answered"] = time.time()
            return answer
        return await call_next(request)

    app.add_api_route("/_fake/log", lambda: log)
    app.add_api_route("/_fake/faults", faults.clear, methods=["DELETE"])

    @app.post("/_fake/faults")
    def add(fault: dict[str, Any]) -> None:
        faults.add(fault)


def build_app(engine: Engine) -> FastAPI:
    """The whole server as one ASGI application."""
    app = FastAPI(openapi_url=None)
    for kind in (ApiError, OSError, sqlite3.Error, SafetensorError):
        app.add_exception_handler(kind, _as_answer)
    Routes(engine).add_to(app)
    _add_control(app, engine.faults)
    return app
