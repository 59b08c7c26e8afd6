"""The HTTP surface of the fake A1111: its routes, and `/_fake` for the tests."""

import asyncio
import base64
import json
import os
import sqlite3
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from safetensors import SafetensorError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fakes.a1111.engine import Engine
from fakes.a1111.faults import ANSWER_FAULTS, Fault, Faults
from fakes.a1111.picture import png
from fakes.a1111.request import ApiError, engine_error, invalid, read_request, refusal
from fakes.a1111.shape import refuse_before_queue
from fakes.recorded import recorded

STATIC_ROUTES = (
    "samplers",
    "schedulers",
    "upscalers",
    "latent-upscale-modes",
    "prompt-styles",
    "scripts",
    "memory",
)
UI_PAGES = {"/", "/config", "/app_id", "/internal/ping"}


async def read_json(request: Request) -> Any:
    """The body as FastAPI 0.94 reads it: without a content type it is taken for JSON."""
    raw = await request.body()
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if not raw or not (kind.endswith(("/json", "+json"))):
        return raw or None
    try:
        return json.loads(raw)
    except UnicodeDecodeError as error:
        raise refusal(400, "There was an error parsing the body") from error
    except json.JSONDecodeError as error:
        raise invalid(["body", error.pos], str(error), "value_error.jsondecode") from error


async def _read_object(request: Request) -> dict[str, Any]:
    body = await read_json(request)
    if not isinstance(body, dict):
        raise invalid(["body"], "value is not a valid dict", "type_error.dict")
    return body


class Routes:
    """The endpoints. What needs the GPU goes through one thread, first come, first served."""

    def __init__(self, engine: Engine, flags: Namespace) -> None:
        self.engine = engine
        self.flags = flags
        self.faults = engine.faults
        self._queue = ThreadPoolExecutor(max_workers=1)

    async def _in_turn(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._queue, work, *args)

    def _queued(self, work: Callable[[], None]) -> Callable[[], Any]:
        async def endpoint() -> None:
            await self._in_turn(work)

        return endpoint

    def _progress(self, *, skip_current_image: bool = False) -> dict[str, Any]:
        shows = self.engine.options.get("live_previews_enable") and self.engine.progress.step
        drawn = png(512, 512, b"\x40\x80\xc0", "") if shows and not skip_current_image else None
        return self.engine.progress.shown(drawn and base64.b64encode(drawn).decode())

    def router(self) -> APIRouter:
        """All routes under /sdapi/v1."""
        router = APIRouter(prefix="/sdapi/v1")
        for name in STATIC_ROUTES:
            router.add_api_route(f"/{name}", lambda n=name: recorded(f"get_{n}"))
        engine = self.engine
        gets: dict[str, Callable[[], Any]] = {
            "progress": self._progress,
            "options": engine.options.shown,
            "cmd-flags": self._cmd_flags,
            "sd-models": lambda: [checkpoint.item() for checkpoint in engine.checkpoints.listed],
            "sd-vae": lambda: [
                {"model_name": name, "filename": str(path)} for name, path in engine.vaes.items()
            ],
            "embeddings": self._embeddings,
        }
        posts: dict[str, Callable[..., Any]] = {
            "txt2img": self.txt2img,
            "options": self.set_options,
            "interrupt": self.interrupt,
            "refresh-checkpoints": self._queued(engine.checkpoints.refresh),
            "refresh-vae": self._queued(engine.refresh_vaes),
            "refresh-embeddings": self._queued(engine.refresh_embeddings),
        }
        if engine.loras:
            loras = engine.loras
            gets["loras"] = lambda: [lora.item() for lora in loras.by_stem.values()]
            posts["refresh-loras"] = loras.refresh
        for name, get in gets.items():
            router.add_api_route(f"/{name}", get, response_model=None)
        for name, post in posts.items():
            router.add_api_route(f"/{name}", post, methods=["POST"], response_model=None)
        return router

    async def txt2img(self, request: Request) -> Response:
        for name, (status, kind, text) in ANSWER_FAULTS.items():
            if self.faults.take(name):
                return Response(text, status, media_type=kind)
        params = read_request(await read_json(request))
        refuse_before_queue(params)
        if fault := self.faults.take("drop"):
            request.scope["transport"].abort()
            if not fault.params.get("running"):
                return Response()
        return JSONResponse(await self._in_turn(self.engine.txt2img, params))

    async def set_options(self, request: Request) -> None:
        changes = await _read_object(request)
        self.engine.refuse_unknown_checkpoint(changes)
        if "sd_model_checkpoint" in changes:
            await self._in_turn(self.engine.set_options, changes)
        else:
            self.engine.set_options(changes)

    async def interrupt(self) -> dict[str, Any]:
        self.engine.progress.interrupt()
        return {}

    def _cmd_flags(self) -> dict[str, Any]:
        return recorded("get_cmd-flags") | vars(self.flags)

    def _embeddings(self) -> dict[str, Any]:
        empty = dict.fromkeys(("step", "sd_checkpoint", "sd_checkpoint_name"))
        shape = {"shape": 768, "vectors": 1}
        return {"loaded": dict.fromkeys(self.engine.embeddings, empty | shape), "skipped": {}}


class Gate:
    """The outermost layer: it keeps the log, and answers while the UI mode has no API yet."""

    def __init__(self, app: ASGIApp, ui_mode: Fault | None) -> None:
        self.app = app
        self.log: list[dict[str, Any]] = []
        self.ui_mode = ui_mode
        self.api_at = time.monotonic() + (ui_mode.seconds(1) if ui_mode else 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/_fake/"):
            await self.app(scope, receive, send)
            return
        body = await self._body(receive)
        if scope["path"].startswith("/sdapi/"):
            self._record(scope, body)
        # uvicorn's own object; the only way to close a connection without an answer
        scope["transport"] = receive.__self__.transport
        await (self._early_answer(scope) or self.app)(scope, self._replay(body, receive), send)

    async def _body(self, receive: Receive) -> bytes:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return body

    def _replay(self, body: bytes, receive: Receive) -> Receive:
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return waiting.pop() if waiting else await receive()

        return replayed

    def _record(self, scope: Scope, body: bytes) -> None:
        try:
            content = json.loads(body) if body else None
        except ValueError:
            content = body.decode("utf-8", "replace")
        entry = {"method": scope["method"], "path": scope["path"], "body": content}
        self.log.append(entry | {"time": time.time()})

    def _early_answer(self, scope: Scope) -> ASGIApp | None:
        if self.ui_mode is None:
            return None
        starting = time.monotonic() < self.api_at
        if starting and self.ui_mode.params.get("fatal"):
            text = "RuntimeError: Cannot add middleware after an application has started\n"
            sys.stderr.write(text)
            sys.stderr.flush()
            os._exit(1)
        if scope["path"] in UI_PAGES:
            return Response("<!doctype html>", media_type="text/html")
        return JSONResponse({"detail": "Not Found"}, 404) if starting else None


def _as_answer(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, ApiError):
        error = engine_error(type(error).__name__, str(error))
    return JSONResponse(error.body, error.status)


def _control(gate_log: list[dict[str, Any]], faults: Faults) -> APIRouter:
    router = APIRouter(prefix="/_fake")

    @router.get("/log")
    def log() -> list[dict[str, Any]]:
        return gate_log

    @router.post("/faults")
    def add(body: dict[str, Any]) -> Response:
        try:
            faults.add(body)
        except (KeyError, ValueError) as error:
            return JSONResponse({"detail": str(error)}, 422)
        return JSONResponse({})

    @router.delete("/faults")
    def clear() -> dict[str, Any]:
        faults.clear()
        return {}

    return router


def build_app(engine: Engine, flags: Namespace, ui_mode: Fault | None) -> Gate:
    """The whole server as one ASGI application."""
    app = FastAPI(openapi_url=None)
    gate = Gate(app, ui_mode)
    for kind in (ApiError, OSError, sqlite3.Error, SafetensorError):
        app.add_exception_handler(kind, _as_answer)
    app.include_router(Routes(engine, flags).router())
    app.include_router(_control(gate.log, engine.faults))
    app.add_api_route("/openapi.json", lambda: recorded("openapi"))
    return gate
