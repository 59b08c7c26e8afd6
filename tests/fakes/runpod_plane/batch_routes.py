"""RunPod's batch API: named lists of jobs that run in the background.

DRAFT takes requests; FINALIZED queues them; CANCELLED comes when the running ones have ended.
"""

import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from aiohttp import web

from fakes.runpod_plane.client_routes import body_of
from fakes.runpod_plane.job import Job
from fakes.runpod_plane.jobs import Jobs

MOST_ACTIVE, MOST_REQUESTS, PAGE = 10, 5000, 50


@dataclass
class Batch:
    """A batch and its requests, in the order in which they came."""

    name: str = ""
    id: str = field(default_factory=lambda: f"batch_{uuid.uuid4().hex}")
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    requests: dict[str, Job] = field(default_factory=dict)
    is_final: bool = False
    is_cancelled: bool = False

    def count(self, *states: str) -> int:
        """How many requests are in one of these states."""
        return sum(job.status in states for job in self.requests.values())

    @property
    def status(self) -> str:
        """The state; a cancelled batch is FINALIZED until its running requests have ended."""
        if self.is_cancelled and not self.count("IN_PROGRESS"):
            return "CANCELLED"
        return "FINALIZED" if self.is_final else "DRAFT"

    @property
    def is_active(self) -> bool:
        """Whether it counts for the limit of active batches."""
        is_done = self.is_final and not self.count("IN_QUEUE", "IN_PROGRESS")
        return not is_done and self.status != "CANCELLED"

    def public(self) -> dict[str, Any]:
        """The summary."""
        return {
            "id": self.id,
            "name": self.name,
            "endpointId": "ep0",
            "status": self.status,
            "requestTotal": len(self.requests),
            "requestInProgress": self.count("IN_PROGRESS"),
            "requestCompleted": self.count("COMPLETED"),
            "requestFailed": self.count("FAILED", "TIMED_OUT"),
            "createdAt": round(self.created.timestamp() * 1000),
        }

    def add(self, requests: list[Any]) -> None:
        """Add requests to the draft; a limit that is passed is answered with 400."""
        if len(self.requests) + len(requests) > MOST_REQUESTS:
            raise web.HTTPBadRequest(text=f"a batch has {MOST_REQUESTS} requests at most")
        if not all(isinstance(one, dict) and "input" in one for one in requests):
            raise web.HTTPBadRequest(text="each request must be an object with an input")
        jobs = [Job(one, "batch", {"batchId": self.id}) for one in requests]
        self.requests |= {job.id: job for job in jobs}


class BatchRoutes:
    """The routes below /batch."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._batches: dict[str, Batch] = {}

    def routes(self, base: str) -> list[web.RouteDef]:
        """All routes."""
        one = base + "/batch/{batch}"
        return [
            web.post(f"{base}/batch", self._create),
            web.get(f"{base}/batch", self._list),
            web.get(one, self._show),
            web.put(one, self._rename),
            web.post(one + "/requests", self._append),
            web.get(one + "/requests", self._page),
            web.delete(one + "/requests/{request}", self._remove),
            web.post(one + "/finalize", self._finalize),
            web.post(one + "/cancel", self._cancel),
        ]

    async def _create(self, request: web.Request) -> web.Response:
        requests = await body_of(request, "batch", list)
        if sum(batch.is_active for batch in self._batches.values()) >= MOST_ACTIVE:
            raise web.HTTPBadRequest(text=f"{MOST_ACTIVE} batches are active")
        batch = Batch()
        batch.add(requests)
        self._batches[batch.id] = batch
        return web.json_response({"id": batch.id, "status": batch.status})

    async def _list(self, _request: web.Request) -> web.Response:
        newest_first = reversed(self._batches.values())
        return web.json_response({"batches": [batch.public() for batch in newest_first]})

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._batch_of(request).public())

    async def _rename(self, request: web.Request) -> web.Response:
        batch = self._batch_of(request)
        batch.name = str((await body_of(request, "batch")).get("name", ""))
        return web.json_response(batch.public())

    async def _append(self, request: web.Request) -> web.Response:
        batch = self._draft_of(request)
        batch.add((await body_of(request, "batch")).get("requests", []))
        return web.json_response(batch.public())

    async def _remove(self, request: web.Request) -> web.Response:
        batch = self._draft_of(request)
        if batch.requests.pop(request.match_info["request"], None) is None:
            raise web.HTTPNotFound
        return web.json_response(batch.public())

    async def _finalize(self, request: web.Request) -> web.Response:
        batch = self._draft_of(request)
        batch.is_final = True
        for job in batch.requests.values():
            await self._jobs.add(job)
        return web.json_response({"id": batch.id, "status": batch.status})

    async def _cancel(self, request: web.Request) -> web.Response:
        """End the requests that wait; those that run go on."""
        batch = self._batch_of(request)
        batch.is_cancelled = True
        waiting = [job for job in batch.requests.values() if job.status == "IN_QUEUE"]
        await self._jobs.cancel(waiting)
        return web.json_response({"id": batch.id, "status": batch.status})

    async def _page(self, request: web.Request) -> web.Response:
        """A page of the requests, with their results."""
        requests = list(self._batch_of(request).requests.values())
        offset, limit = (
            int(request.query.get(name, usual)) for name, usual in (("offset", 0), ("limit", PAGE))
        )
        page = {"total": len(requests), "offset": offset, "limit": limit}
        page["hasMore"] = offset + limit < len(requests)
        shown = [_request(job) for job in requests[offset : offset + limit]]
        return web.json_response({"requests": shown, **page})

    def _batch_of(self, request: web.Request) -> Batch:
        batch = self._batches.get(request.match_info["batch"])
        if batch is None:
            raise web.HTTPNotFound
        return batch

    def _draft_of(self, request: web.Request) -> Batch:
        batch = self._batch_of(request)
        if batch.status != "DRAFT":
            raise web.HTTPBadRequest(text=f"the batch is {batch.status}")
        return batch


def _request(job: Job) -> dict[str, Any]:
    shown = {key: job.public().get(key) for key in ("id", "status", "output", "error")}
    shown |= {"startedAt": _iso(job.started), "completedAt": _iso(job.ended)}
    return {key: value for key, value in shown.items() if value is not None}


def _iso(moment: float | None) -> str | None:
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="seconds")
