"""The answer of a request with `stream`: OpenAI's events, with pictures while the job draws."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.call import HungUp
from gateway.jobs import GatewayError, JobState
from gateway.openai.answers import JobFailed, answer_of, failure_of
from worker.translation.openai_images import NO_USAGE

logger = logging.getLogger(__name__)

_DRAWING = {"load", "generate", "upload"}  # phases after which a request is rarely refused
_SILENCE = 15.0  # seconds; proxies close connections that are silent for a minute
_PREVIEW = "jpeg"  # the format of the worker's previews


def is_drawing(state: JobState) -> bool:
    """Whether the job draws, so that its request is known to be right."""
    return isinstance(state.output, Mapping) and state.output.get("phase") in _DRAWING


@dataclass
class Events:
    """Turns states of one job into events.

    Attributes:
        kind: `image_generation` or `image_edit`.
        size: what the request asks for.
        partial: how many unfinished pictures the client wants.
    """

    kind: str
    size: str
    partial: int
    sent: int = 0

    def of(self, state: JobState) -> Iterator[bytes]:
        """The events of this state."""
        if not state.is_final:
            yield from self._preview(state)
            return
        try:
            answer = answer_of(state)
        except JobFailed as failed:
            yield error_event(failed)
            return
        for item in answer["data"]:
            yield self._event(
                "completed",
                {name: one for name, one in item.items() if name in {"b64_json", "url"}},
                size=answer.get("size") or self.size,
                output_format=answer.get("output_format", "png"),
                usage=answer.get("usage", NO_USAGE),
                warnings=answer.get("warnings", []),
                info=answer.get("info"),
            )

    def _preview(self, state: JobState) -> Iterator[bytes]:
        report = state.output if isinstance(state.output, Mapping) else {}
        preview, percent = report.get("preview"), report.get("percent", 0)
        due = 100 * (self.sent + 1) / (self.partial + 1)
        is_due = isinstance(percent, int | float) and percent >= due
        if isinstance(preview, str) and self.sent < self.partial and is_due:
            number, self.sent = self.sent, self.sent + 1
            picture = {"b64_json": preview, "partial_image_index": number}
            yield self._event("partial_image", picture, size=self.size, output_format=_PREVIEW)

    def _event(self, name: str, picture: Mapping[str, Any], **more: object) -> bytes:
        kind = f"{self.kind}.{name}"
        common = {"created_at": int(time.time()), "background": "opaque", "quality": "auto"}
        return event(kind, {"type": kind, **picture, **common, **more})


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def error_event(failed: JobFailed) -> bytes:
    """The event for an error after the answer has begun."""
    return event("error", {"type": "error", "error": failed.error})


class EventResponse(Response):
    """Sends the events of a job until it has ended.

    Not Starlette's StreamingResponse, which would leave the states of the job open when the client
    hangs up, and the job would run on: `gateway.call.states` sees the hang-up itself.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: Events, first: JobState, states: AsyncGenerator[JobState, None]
    ) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.headers["Cache-Control"] = "no-store"
        self._events = events
        self._first = first
        self._states = states

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send them."""
        async with aclosing(self._states):
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            try:
                for one in self._events.of(self._first):
                    await _send(send, one)
                async with aclosing(self._rest()) as rest:
                    async for one in rest:
                        await _send(send, one)
            except HungUp:
                return
            await send({"type": "http.response.body", "body": b""})

    async def _rest(self) -> AsyncGenerator[bytes, None]:
        coming = asyncio.ensure_future(anext(self._states, None))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=_SILENCE)
                if not done:
                    yield b": the job draws\n\n"
                    continue
                state = coming.result()
                if state is None:
                    return
                for one in self._events.of(state):
                    yield one
                coming = asyncio.ensure_future(anext(self._states, None))
        except GatewayError as error:
            logger.warning("%s", error)
            yield error_event(failure_of(error))
        finally:
            coming.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, HungUp, GatewayError):
                await coming


async def _send(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
