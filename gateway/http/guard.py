"""Refuses requests that must not reach a job: from web pages of other origins, by DNS rebinding,
too large, too slow, or without the login.

Pure ASGI: Starlette's `BaseHTTPMiddleware` would hide that a client hangs up.
"""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.head import Access, Refused, check_head, is_preflight
from gateway.http.json_answer import JsonAnswer
from gateway.http.login import Logins
from worker.shown import shown

__all__ = ["Access", "Guard", "Refused"]

_WITHOUT_LOGIN = {"/ping"}  # the platform asks there whether the server is ready

logger = logging.getLogger(__name__)


class Guard:
    """ASGI middleware around the app."""

    def __init__(self, app: ASGIApp, access: Access, logins: Logins | None = None) -> None:
        self._access = access
        self._logins = logins or Logins(access)
        self._app = app
        if access.origins:  # their pages may read the answers, too
            self._app = CORSMiddleware(
                app,
                allow_origins=access.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                allow_private_network=True,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the request's head and login, then count its body."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            check_head(scope, self._access)
            await self._check_login(scope)
        except Refused as refusal:
            logger.warning("HTTP %d for %s: %s", refusal.status, shown(scope["path"]), refusal)
            await answer_to(refusal)(scope, receive, send)
            return
        await self._app(scope, self._counted(receive), send)

    async def _check_login(self, scope: Scope) -> None:
        if scope["path"] in _WITHOUT_LOGIN or is_preflight(scope, self._access):
            return
        address = scope["client"][0] if scope.get("client") else ""
        await self._logins.check(Headers(scope=scope).get("authorization"), address)

    def _counted(self, receive: Receive) -> Receive:
        """The same, but it ends with an error where the body is too large or too slow."""
        total, is_whole = 0, False
        until = time.monotonic() + self._access.body_seconds

        async def counted() -> Message:
            nonlocal total, is_whole
            if is_whole:  # now it waits for the hang-up
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), until - time.monotonic())
            except asyncio.TimeoutError:
                raise Refused(408, "The request's body did not arrive in time.") from None
            total += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if total > self._access.body_limit:
                raise self._access.too_large(total)
            return message

        return counted


def answer_to(refusal: Refused) -> JsonAnswer:
    """The answer to a request that is refused."""
    text = str(refusal)
    content = {"detail": text, "errors": text, "error": text}
    return JsonAnswer(content, refusal.status, dict(refusal.headers))
