"""What a job sends to RunPod's `/stream` while it runs: progress, and each finished picture.

Everything is posted in order by one task of the job, so that a slow RunPod blocks neither the
drawing nor another job. Pictures are never dropped while they wait; a progress report is sent only
where none of them waits, and only the newest one. The job's result is posted after the last chunk.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

# Characters of base64 in one piece of a picture: whole bytes, and with the chunk's other fields
# and what is around them less than RunPod's 1,000,000 bytes.
PIECE = 983_040

NO_STREAM = (
    "output.stream: nothing was streamed, because this worker has no address for that; RunPod sets"
    " it as RUNPOD_WEBHOOK_POST_STREAM."
)

logger = logging.getLogger(__name__)

Chunk = dict[str, Any]


class PostChunk(Protocol):
    """Sends one chunk of a job."""

    async def __call__(self, chunk: Mapping[str, Any], *, again: bool) -> bool:
        """Whether it was accepted; with `again` it is sent several times if needed."""


@dataclass(frozen=True)
class StreamTiming:
    """Waits, in seconds.

    Attributes:
        patience: how long the job's end waits for its pictures while none of them is accepted.
        last: the same for a progress report that is being posted.
    """

    patience: float = 120.0
    last: float = 5.0


DEFAULT_TIMING = StreamTiming()


@dataclass
class _Waiting:
    """What is to be posted: a report, or all chunks of one picture.

    Attributes:
        chunk: its fields, without a piece of the picture.
        data: the picture as base64; None: a report, or a picture that went to a URL.
        sent: whether it was accepted; without a result while it waits.
    """

    chunk: Chunk
    data: str | None = None
    sent: asyncio.Future[bool] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def is_report(self) -> bool:
        return bool(self.chunk["type"] == "progress")

    def chunks(self) -> Iterator[Chunk]:
        if self.data is None:
            yield self.chunk
            return
        parts = -(-len(self.data) // PIECE)
        for part in range(parts):
            piece = self.data[part * PIECE : (part + 1) * PIECE]
            yield {**self.chunk, "part": part + 1, "parts": parts, "data": piece}

    def end(self, *, accepted: bool) -> None:
        if not self.sent.done():
            self.sent.set_result(accepted)


class JobStream:
    """The stream of one job; nothing is sent before `open`. For one event loop.

    An asynchronous context: after it nothing is posted any more.

    Args:
        post: sends one chunk to RunPod; None: the worker cannot stream here.
    """

    def __init__(
        self, post: PostChunk | None = None, timing: StreamTiming = DEFAULT_TIMING
    ) -> None:
        self._post = post
        self._timing = timing
        self._is_wanted = False
        self._pictures: list[_Waiting] = []
        self._queue: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._is_closed = False
        self._accepted = 0.0  # when the last chunk was accepted, by the loop's clock
        self._posting: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether pictures are streamed."""
        return self._is_wanted and self._post is not None

    def open(self) -> None:
        """The job asks for the stream."""
        self._is_wanted = True

    def progress(self, report: Mapping[str, Any]) -> None:
        """Send a progress report, unless pictures wait; it replaces an older one that waits."""
        if not self.is_open or not report:
            return
        if self._queue and self._queue[-1].is_report:
            self._queue.pop()
        if not self._queue:
            self._add(_Waiting({"type": "progress", **report}))

    def picture(self, facts: Mapping[str, Any], data: str | None = None) -> None:
        """Send a picture.

        Args:
            facts: the fields of its chunks: `number`, `pictures`, `format`, and `seed` or `url`.
            data: its file as base64, sent in pieces; None: the facts have a URL.
        """
        waiting = _Waiting({"type": "picture", **facts}, data)
        self._pictures.append(waiting)
        self._add(waiting)

    def part(self, number: int, count: int) -> JobStream:
        """The stream of one input of a batch, sent with the batch's own; `number` from 1."""
        return _Part(self, number, count)

    async def lost(self) -> list[int]:
        """Wait until the pictures were posted; the numbers of those that were not accepted.

        When no chunk was accepted for `patience` seconds, those that still wait count as lost, and
        are sent no more. So a slow RunPod gets all of them.
        """
        clock = asyncio.get_running_loop().time
        began, patience = clock(), self._timing.patience
        while waiting := {one.sent for one in self._pictures if not one.sent.done()}:
            left = max(began, self._last_accepted()) + patience - clock()
            if left <= 0:
                break
            await asyncio.wait(waiting, timeout=left)
        for one in self._pictures:
            one.end(accepted=False)
        return [one.chunk["number"] for one in self._pictures if not one.sent.result()]

    async def warnings(self) -> list[str]:
        """What the job's answer must report of the stream; waits as `lost` does."""
        if self._is_wanted and not self.is_open:
            return [NO_STREAM]
        lost = await self.lost()
        if not lost:
            return []
        numbers = ", ".join(map(str, lost))
        return [f"output.stream: RunPod has not accepted all of picture {numbers}."]

    async def __aenter__(self) -> JobStream:
        return self

    async def __aexit__(
        self,
        type_: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._is_closed = True
        self._changed.set()
        if not self._posting:
            return
        if type_ is None:  # otherwise the job was stopped: nothing is sent any more
            await asyncio.wait({self._posting}, timeout=self._timing.last)
        self._posting.cancel()
        with suppress(asyncio.CancelledError):
            await self._posting

    def _last_accepted(self) -> float:
        return self._accepted

    def _add(self, waiting: _Waiting) -> None:
        self._queue.append(waiting)
        self._changed.set()
        if self._posting is None and self._post:
            self._posting = asyncio.create_task(self._post_all(self._post))

    async def _post_all(self, post: PostChunk) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._queue and not self._is_closed:
                await self._send(post, self._queue.popleft())
            if self._is_closed:
                return

    async def _send(self, post: PostChunk, waiting: _Waiting) -> None:
        for chunk in waiting.chunks():
            if waiting.sent.done():
                return  # nobody waits for it any more
            if await post(chunk, again=not waiting.is_report):
                self._accepted = asyncio.get_running_loop().time()
            else:
                waiting.end(accepted=False)  # its other pieces are of no use
        waiting.end(accepted=True)
        waiting.data = None  # the result has it


class _Part(JobStream):
    """The chunks of one input of a batch, each with the input's number."""

    def __init__(self, whole: JobStream, number: int, count: int) -> None:
        super().__init__(whole._post, whole._timing)  # noqa: SLF001 - its own
        self._whole = whole
        self._place = {"input": number, "inputs": count}

    def open(self) -> None:
        super().open()
        self._whole.open()

    def picture(self, facts: Mapping[str, Any], data: str | None = None) -> None:
        super().picture({**facts, **self._place}, data)

    def _last_accepted(self) -> float:
        return self._whole._last_accepted()  # noqa: SLF001 - its own

    def _add(self, waiting: _Waiting) -> None:
        self._whole._add(waiting)  # noqa: SLF001 - its own
