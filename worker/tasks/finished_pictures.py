"""Finished pictures of a job that streams: delivered and sent while the next ones are drawn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from worker.delivery.early import EarlyPictures
from worker.errors import DeliveryFailed
from worker.job.output_fields import Output
from worker.service.parts import Worker
from worker.service.task import Job


@dataclass(frozen=True)
class Finished:
    """Pictures that the engine has made.

    Attributes:
        images: the engine's base64.
        count: how many the job makes, grids included.
        seeds: of each of them; empty if they have none.
        grids: number of grids, which come first.
    """

    images: Sequence[str]
    count: int
    seeds: Sequence[int | None] = ()
    grids: int = 0


class FinishedPictures:
    """Takes the pictures of one job in their order; does nothing for a job without a stream.

    An asynchronous context. If the job fails, the pictures that were finished before still go out;
    if it is cancelled, nothing does.

    Attributes:
        stop: set when the job is cancelled: its uploads end.
    """

    def __init__(self, worker: Worker, job: Job, output: Output) -> None:
        self._output = output
        self._stream = job.stream
        if output.stream:
            job.stream.open()
        self.stop = threading.Event()
        is_open = job.stream.is_open
        self._early = worker.delivery.early(output, job.id, self.stop) if is_open else None
        self._sending: asyncio.Task[None] | None = None

    def add(self, finished: Finished) -> None:
        """Send these pictures after the ones before; returns at once."""
        if self._early:
            self._sending = asyncio.create_task(self._send(self._sending, self._early, finished))

    async def _send(
        self, before: asyncio.Task[None] | None, early: EarlyPictures, finished: Finished
    ) -> None:
        if before:
            await before
        grids = finished.grids
        unsent = grids if self._output.delivery == "put" else 0  # the job has no URL for a grid
        for number, image in enumerate(finished.images):
            place = len(early.pictures)
            one = await asyncio.to_thread(early.add, image, grids)
            if place < unsent:
                continue
            facts: dict[str, Any] = {
                "number": place - unsent + 1,
                "pictures": finished.count - unsent,
                "format": one.file.format,
            }
            seed = finished.seeds[number] if finished.seeds else None
            facts |= {} if seed is None else {"seed": seed}
            if one.url:
                self._stream.picture(facts | {"url": one.url})
            else:
                self._stream.picture(facts, await asyncio.to_thread(one.file.base64))

    async def delivered(self) -> EarlyPictures | None:
        """What was done for the pictures, once all of them have been posted or lost."""
        early, sending = self._early, self._sending
        if early is None or sending is None:
            return None
        await asyncio.wait({sending})
        error = sending.exception()
        if error and not isinstance(error, DeliveryFailed):
            raise error
        # A picture that cannot be converted is reported by the delivery of the result.
        early.is_streamed = not error and not await self._stream.lost()
        return early

    async def __aenter__(self) -> FinishedPictures:
        return self

    async def __aexit__(
        self,
        type_: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        is_cancelled = type_ is not None and issubclass(type_, asyncio.CancelledError)
        if is_cancelled:
            self.stop.set()
        if self._sending is None:
            return
        if is_cancelled:
            self._sending.cancel()
        await asyncio.wait({self._sending})
        if not self._sending.cancelled():
            self._sending.exception()  # or asyncio logs that nothing has read it
