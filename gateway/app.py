"""Puts the routes together to one app."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from gateway.a1111.api import A1111Api
from gateway.a1111.options import Remembered
from gateway.call import HungUp
from gateway.catalog.catalog import Catalog
from gateway.http.guard import Access, Guard, Refused, answer_to
from gateway.http.json_answer import JsonAnswer
from gateway.jobs import GatewayError, Jobs
from gateway.local.jobs import LocalJobs
from gateway.openai.routes import OpenAIImages
from gateway.page.data import PageData
from gateway.page.routes import Page
from gateway.runpod_api import RunPodApi

logger = logging.getLogger(__name__)


def build(
    jobs: Jobs,
    access: Access,
    more: tuple[BaseRoute, ...] = (),
    catalog: Catalog | None = None,
    remembered: Remembered | None = None,
) -> Starlette:
    """The app over this back.

    Args:
        jobs: the back.
        access: who may use it.
        more: routes of the place where it runs, such as /ping.
        catalog: the back's lists; by default they are only in memory.
        remembered: options that clients of A1111 have changed; by default only in memory.
    """
    lists = catalog or Catalog(jobs)
    data = PageData(jobs, lists, asks_health=isinstance(jobs, LocalJobs))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await lists.close()

    return Starlette(
        lifespan=lifespan,
        routes=[
            *OpenAIImages(jobs, lists).routes(),
            *A1111Api(jobs, lists, remembered=remembered).routes(),
            *RunPodApi(jobs).routes(),
            *Page(data).routes(),
            *more,
        ],
        middleware=[Middleware(Guard, access=access)],
        exception_handlers={
            GatewayError: _failed,
            Refused: _refused,
            HungUp: _nobody_reads,
            HTTPException: _no_route,
        },
    )


async def _failed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)  # noqa: S101 - it is registered for this type
    logger.warning("HTTP %d: %s", error.status, error)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    text = str(error)
    return JsonAnswer({"detail": text, "errors": text, "error": text}, error.status, headers)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)  # noqa: S101 - it is registered for this type
    return answer_to(error)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for this type
    what = f"{request.method} {request.url.path[:200]}"
    text = f"{what}: {error.detail}. docs/clients/README.md lists the routes."
    return JsonAnswer({"detail": text, "error": text}, error.status_code, error.headers)


async def _nobody_reads(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nginx's status for a client that closed the connection
