"""The control plane's jobs: their life from the queue to the end, and what the tests see of it."""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

import aiohttp

from fakes.runpod_plane.job import EXECUTION_TIMEOUT_MS, RETRIABLE, Job

Event = dict[str, Any]
WEBHOOK_ATTEMPTS = 3


class Jobs:
    """All jobs of the endpoint; everything but `note`, `events` and `changed` is for the loop.

    Attributes:
        hold: for how many seconds a poll is held.
        webhook_pause: seconds between two attempts at a webhook.
        retried: how many jobs were queued again.
        again: jobs that a worker gets although they are not in the queue.
        gone: workers that are lost; the plane may not know yet that their poll has ended.
    """

    def __init__(self, hold: float, webhook_pause: float) -> None:
        self.hold, self.webhook_pause = hold, webhook_pause
        self.retried = 0
        self.again: list[Job] = []
        self.gone: set[str] = set()
        self.by_id: dict[str, Job] = {}
        self.events: list[Event] = []
        self.changed = threading.Condition()  # wakes the waiting test
        self._stops: dict[str, list[str]] = defaultdict(list)
        self._news = asyncio.Condition()  # wakes the long polls
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, kind: str, **details: Any) -> None:
        """Write an event down for the test."""
        with self.changed:
            self.events.append({"kind": kind, "time": time.monotonic(), **details})
            self.changed.notify_all()

    async def announce(self) -> None:
        """Wake the polls that are held."""
        async with self._news:
            self._news.notify_all()

    async def hold_until(self, reached: Callable[[], bool], seconds: float | None = None) -> None:
        """Hold a poll until there is something to answer, at most for `seconds`, or `hold`."""
        async with self._news:
            with suppress(asyncio.TimeoutError):
                limit = self.hold if seconds is None else seconds
                await asyncio.wait_for(self._news.wait_for(reached), limit)

    async def close(self) -> None:
        """End the webhooks that are still being posted."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def forget(self) -> None:
        """Drop the jobs that have ended and all events."""
        self.by_id = {id_: job for id_, job in self.by_id.items() if not job.is_over}
        self.events.clear()

    # The life of a job.

    async def add(self, job: Job) -> Job:
        """Queue a job; its `ttl` begins."""
        self.by_id[job.id] = job
        self.note("submit", id=job.id, policy=dict(job.policy))
        if "ttl" in job.policy:
            self._later(job.policy["ttl"] / 1000, lambda: self.expire(job))
        await self.announce()
        return job

    def queued(self) -> list[Job]:
        """The jobs that wait, the oldest first."""
        return [job for job in self.by_id.values() if job.status == "IN_QUEUE"]

    async def deliver_again(self, job: Job) -> None:
        """Give the next worker that asks a job that is not in the queue; its state stays."""
        self.again.append(job)
        await self.announce()

    async def lose(self, worker: str) -> list[str]:
        """Queue the running jobs of a worker that is gone again; it gets no more."""
        self.gone.add(worker)
        lost = [one for one in self.by_id.values() if one.status == "IN_PROGRESS"]
        lost = [job for job in lost if job.worker == worker]
        for job in lost:
            self.note("lost", id=job.id, worker=worker)
            await self.requeue(job)
        self._stops.pop(worker, None)
        return [job.id for job in lost]

    async def requeue(self, job: Job) -> None:
        """Queue a job again."""
        job.requeue()
        self.retried += 1
        await self.announce()

    def give(self, job: Job, worker: str) -> dict[str, Any]:
        """Give a worker a job; its execution timeout begins."""
        job.status, job.worker, job.started = "IN_PROGRESS", worker, time.time()
        allowed = job.policy.get("executionTimeout", EXECUTION_TIMEOUT_MS) / 1000
        attempt = job.attempt
        self._later(allowed, lambda: self.time_out(job, attempt))
        return job.for_worker()

    async def end(self, job: Job, status: str, **result: Any) -> None:
        """Give a job its final state, once; a running job that ends otherwise is stopped."""
        if job.is_over:
            return
        if job.status == "IN_PROGRESS" and status in {"CANCELLED", "TIMED_OUT"}:
            self._stops[str(job.worker)].append(job.id)
        job.status, job.output, job.error = status, result.get("output"), result.get("error")
        job.ended = time.time()
        self.note(status.lower(), id=job.id)
        if job.request.get("webhook"):
            self._start(self._post_webhook(job))
        await self.announce()

    async def time_out(self, job: Job, attempt: int) -> None:
        """End a job that has run for longer than its execution timeout."""
        if job.attempt == attempt:
            await self.end(job, "TIMED_OUT", error="job timed out")

    async def expire(self, job: Job) -> None:
        """Delete a job at the end of its `ttl`, even while it runs; a result stays."""
        if job.is_over:
            return
        await self.end(job, "TIMED_OUT", error="job expired")
        self.by_id.pop(job.id)
        self.note("expired", id=job.id)

    async def retry(self, job: Job) -> bool:
        """Queue a failed job again; returns whether it can be."""
        if job.status not in RETRIABLE:
            return False
        await self.requeue(job)
        return True

    async def cancel(self, jobs: Iterable[Job]) -> int:
        """Cancel these jobs; returns how many."""
        found = list(jobs)
        for job in found:
            await self.end(job, "CANCELLED")
        return len(found)

    def has_stops(self, worker: str) -> bool:
        """Whether this worker has jobs to stop."""
        return bool(self._stops[worker])

    def take_stops(self, worker: str) -> list[str]:
        """The ids of the jobs that this worker must stop, once."""
        return self._stops.pop(worker, [])

    # What happens later.

    def _later(self, seconds: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.get_running_loop().call_later(seconds, lambda: self._start(work()))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _post_webhook(self, job: Job) -> None:
        """Post the job until the answer is 200, three times at most."""
        async with aiohttp.ClientSession() as session:
            for attempt in range(WEBHOOK_ATTEMPTS):
                await asyncio.sleep(self.webhook_pause if attempt else 0)
                status = await _post(session, job)
                self.note("webhook", id=job.id, status=status)
                if status == 200:
                    return


async def _post(session: aiohttp.ClientSession, job: Job) -> int | None:
    """The status of the answer; None if there was none."""
    with suppress(aiohttp.ClientError):
        async with session.post(job.request["webhook"], json=job.public()) as answer:
            return answer.status
    return None
