"""The HTTP application: A1111's paths, and errors in A1111's form."""

import logging
from collections.abc import Callable
from typing import Any

import psutil
import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from engine import __version__
from engine.api import extras, second_pass
from engine.api.generation import Engine
from engine.api.img2img import Img2Img
from engine.api.request import Txt2Img
from engine.errors import Refused
from engine.guard import Guard
from engine.sampling import samplers

log = logging.getLogger(__name__)

PREFIX = "/sdapi/v1"
LONGEST_TEXT = 1000
MOST_PROBLEMS = 12  # in one answer
Endpoint = Callable[..., Any]


def create_app(engine: Engine, host: str = "127.0.0.1") -> FastAPI:
    """The application. Endpoints are plain functions: they run in threads, beside the job.

    Args:
        engine: what it serves.
        host: where it listens.
    """
    app = FastAPI(title="embedded engine", version=__version__)
    app.add_middleware(Guard, host=host)
    for path, endpoint in _gets(engine).items():
        app.get(PREFIX + path, response_model=None)(endpoint)
    for path, endpoint in _posts(engine).items():
        app.post(PREFIX + path, response_model=None)(endpoint)
    app.exception_handler(Refused)(_refused)
    app.exception_handler(RequestValidationError)(_invalid)
    for kind in (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError):
        app.exception_handler(kind)(_failed)
    # for all others; Starlette closes the connection after this answer
    app.exception_handler(Exception)(_failed)
    return app


def _gets(engine: Engine) -> dict[str, Endpoint]:
    """The GET endpoints. The engine has no scripts."""
    library = engine.library
    return {
        "/options": engine.get_options,
        "/sd-models": engine.checkpoints.describe,
        "/sd-vae": lambda: [vae.describe() for vae in library.vaes.all],
        "/loras": lambda: [lora.describe() for lora in library.loras.all],
        "/embeddings": library.embeddings.describe,
        "/samplers": lambda: [sampler.describe() for sampler in samplers.SAMPLERS],
        "/schedulers": lambda: [scheduler.describe() for scheduler in samplers.SCHEDULERS],
        "/progress": engine.progress.describe,
        "/memory": describe_memory,
        "/upscalers": lambda: [one.describe() for one in engine.library.upscalers.all()],
        "/latent-upscale-modes": lambda: [{"name": name} for name in second_pass.LATENT_MODES],
        "/prompt-styles": engine.styles.describe,
        "/cmd-flags": engine.get_flags,
        "/hypernetworks": describe_nothing,
        "/face-restorers": describe_nothing,
        "/realesrgan-models": lambda: [
            {"name": one.name, "path": str(one.path), "scale": one.scale}
            for one in engine.library.upscalers.real_esrgan()
        ],
        "/extensions": describe_nothing,
        "/script-info": describe_nothing,
        "/worker-parts": lambda: ["checkpoints kept apart", "no copies of weights"],
        "/scripts": lambda: {"txt2img": [], "img2img": []},
    }


def _posts(engine: Engine) -> dict[str, Endpoint]:
    """The POST endpoints."""

    def interrupt() -> dict[str, Any]:
        engine.progress.interrupt()
        return {}

    def txt2img(request: Txt2Img) -> JSONResponse:
        # written here: FastAPI's own conversion fails for nested lists that JSON can hold
        return JSONResponse(engine.txt2img(request))

    def img2img(request: Img2Img) -> JSONResponse:
        return JSONResponse(engine.img2img(request))

    def png_info(request: extras.PngInfo) -> JSONResponse:
        return JSONResponse(extras.read_png_info(request, engine.styles))

    return {
        "/txt2img": txt2img,
        "/img2img": img2img,
        "/extra-single-image": engine.upscale,
        "/extra-batch-images": engine.upscale_many,
        "/png-info": png_info,
        "/interrogate": extras.refuse_interrogation,
        "/options": engine.set_options,
        "/interrupt": interrupt,
        "/skip": engine.progress.skip,
        "/refresh-checkpoints": engine.refresh_checkpoints,
        "/refresh-loras": engine.library.loras.refresh,
        "/refresh-vae": engine.library.vaes.refresh,
        "/refresh-embeddings": engine.refresh_embeddings,
    }


def _refused(_request: Request, error: Exception) -> JSONResponse:
    """A1111's answer if its code raises an HTTPException."""
    status = error.status if isinstance(error, Refused) else 500
    return _answer(status, "HTTPException", detail=str(error))


def _invalid(_request: Request, error: Exception) -> JSONResponse:
    """A1111's answer to a body of another form. FastAPI's own repeats the values, all of them."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    kept = ("loc", "msg", "type")
    detail = [
        {name: _writable(problem[name]) for name in kept} for problem in found[:MOST_PROBLEMS]
    ]
    return JSONResponse({"detail": detail}, status_code=422)


def _writable(value: Any) -> Any:  # noqa: ANN401 - a text, or a list of texts and numbers
    """Short texts that UTF-8 can hold."""
    if isinstance(value, (list, tuple)):
        return [_writable(part) for part in value]
    if isinstance(value, str):
        return value[:LONGEST_TEXT].encode(errors="replace").decode()
    return value


def _failed(request: Request, error: Exception) -> JSONResponse:
    """A1111's answer to any other exception: its class and message."""
    is_known = isinstance(error, FileNotFoundError)  # the message is enough
    trace = None if is_known else error
    log.error("%s %s failed: %s", request.method, request.url.path, error, exc_info=trace)
    return _answer(500, type(error).__name__, errors=str(error))


def _answer(status: int, error: str, detail: str = "", errors: str = "") -> JSONResponse:
    body = {"error": error, "detail": _writable(detail), "body": "", "errors": _writable(errors)}
    return JSONResponse(body, status_code=status)


def describe_nothing() -> list[Any]:
    """An empty list, for the features that the engine does not have."""
    return []


def describe_memory() -> dict[str, Any]:
    """The answer of GET /memory, in bytes: used by this process, and the machine's total."""
    total = float(psutil.virtual_memory().total)
    used = psutil.Process().memory_info().rss
    return {"ram": {"free": total - used, "used": used, "total": total}, "cuda": _cuda_memory()}


def _cuda_memory() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"error": "unavailable"}
    free, total = torch.cuda.mem_get_info()
    return {"system": {"free": free, "used": total - free, "total": total}}
