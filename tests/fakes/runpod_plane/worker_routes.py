"""The worker's half of the API: job-take, job-done, job-stream, job-stop, ping."""

import json
from collections.abc import Callable
from typing import Any, NoReturn

from aiohttp import web

from fakes.runpod_plane.job import LONGEST_BODY, LONGEST_CHUNK, Job
from fakes.runpod_plane.jobs import Jobs


class WorkerRoutes:
    """The routes; `workers` are those that polled, and `unhealthy` those that said they are."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self.workers: set[str] = set()
        self.unhealthy: set[str] = set()

    def routes(self, base: str) -> list[web.RouteDef]:
        """All routes."""
        return [
            web.get(base + "/job-take/{worker}", self._take),
            web.get(base + "/job-take-batch/{worker}", self._take),
            web.get(base + "/job-stop/{worker}", self._stop),
            web.get(base + "/ping/{worker}", self._ping),
            web.post(base + "/job-done/{worker}/{job}", self._done),
            web.post(base + "/job-stream/{worker}/{job}", self._stream),
        ]

    async def _take(self, request: web.Request) -> web.Response:
        worker = request.match_info["worker"]
        self.workers.add(worker)
        batch_size = int(request.query.get("batch_size", 0))
        is_held = await self._hold(request, lambda: bool(self._jobs.again or self._jobs.queued()))
        if not is_held or worker in self._jobs.gone:
            return web.Response(status=204)
        if self._jobs.again:
            job = self._jobs.again.pop(0).for_worker()
            self._jobs.note("given-again", worker=worker, id=job["id"])
            return web.json_response([job] if batch_size else job)
        queued = self._jobs.queued()[: batch_size or 1]
        given = [self._jobs.give(job, worker) for job in queued]
        self._jobs.note("given", worker=worker, ids=[job["id"] for job in given], jobs=given)
        return web.json_response(given if batch_size else given[0])

    async def _stop(self, request: web.Request) -> web.Response:
        worker = request.match_info["worker"]
        if not await self._hold(request, lambda: self._jobs.has_stops(worker)):
            return web.Response(status=204)
        job_ids = self._jobs.take_stops(worker)
        self._jobs.note("stop-given", worker=worker, ids=job_ids)
        return web.json_response({"jobsToStop": job_ids})

    async def _hold(self, request: web.Request, reached: Callable[[], bool]) -> bool:
        """Hold a worker's poll; returns whether something can be answered.

        If the worker has ended its poll at the same moment, it cannot get an answer any more.
        """
        await self._jobs.hold_until(reached)
        line = request.transport
        return reached() and line is not None and not line.is_closing()

    async def _ping(self, request: web.Request) -> web.Response:
        if request.query.get("status") == "unhealthy":
            self.unhealthy.add(request.match_info["worker"])
        return web.json_response({})

    async def _done(self, request: web.Request) -> web.Response:
        """Take a result, or a report of a job's progress."""
        job, raw = self._job_of(request), await request.read()
        body = self._parsed(job, raw)
        if len(raw) > LONGEST_BODY[job.route]:
            self._jobs.note("done-too-large", id=job.id, size=len(raw))
            raise web.HTTPBadRequest(text="the result is too large")
        is_stream = request.query.get("isStream") == "true"
        await self._accept(job, body, {"size": len(raw), "is_stream": is_stream})
        return web.json_response({})

    async def _accept(self, job: Job, body: dict[str, Any], details: dict[str, Any]) -> None:
        late, output = job.is_over, body.get("output")
        if body.get("status") == "IN_PROGRESS":
            job.output = job.output if late else output
            self._jobs.note("progress", id=job.id, output=output, late=late)
            return
        self._jobs.note("done", id=job.id, body=body, late=late, **details)
        status = "FAILED" if body.get("error") else "COMPLETED"
        await self._jobs.end(job, status, output=output, error=body.get("error"))

    async def _stream(self, request: web.Request) -> web.Response:
        """Take a chunk of a job's stream: the `output` of the body."""
        job, raw = self._job_of(request), await request.read()
        body = self._parsed(job, raw)
        size = len(json.dumps(body.get("output"), ensure_ascii=False).encode())
        self._jobs.note("chunk", id=job.id, size=size, output=body.get("output"), late=job.is_over)
        if size > LONGEST_CHUNK:
            raise web.HTTPBadRequest(text="the chunk is too large")
        if not job.is_over:
            job.chunks.append(body.get("output"))
            await self._jobs.announce()
        return web.json_response({})

    def _job_of(self, request: web.Request) -> Job:
        job = self._jobs.by_id.get(request.match_info["job"])
        if job is None:
            raise web.HTTPNotFound(text="no such job")
        return job

    def _parsed(self, job: Job, raw: bytes) -> dict[str, Any]:
        """The body of a post; Python's NaN and Infinity are errors, as on RunPod."""
        try:
            return dict(json.loads(raw, parse_constant=_refuse_constant))
        except ValueError as error:
            self._jobs.note("done-bad-json", id=job.id, error=str(error))
            raise web.HTTPBadRequest(text="bad json") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
