"""The client's half of the API, without the batches."""

from collections import Counter
from typing import Any

from aiohttp import web

from fakes.runpod_plane.job import LONGEST_BODY, Job
from fakes.runpod_plane.jobs import Jobs
from fakes.runpod_plane.worker_routes import WorkerRoutes

COUNTED = {"completed": "COMPLETED", "failed": "FAILED"}
COUNTED |= {"inProgress": "IN_PROGRESS", "inQueue": "IN_QUEUE"}


class ClientRoutes:
    """The routes of RunPod's clients."""

    def __init__(self, jobs: Jobs, workers: WorkerRoutes) -> None:
        self._jobs = jobs
        self._workers = workers

    def routes(self, base: str) -> list[web.RouteDef]:
        """All routes."""
        return [
            web.post(f"{base}/run", self._run),
            web.post(f"{base}/runsync", self._run_sync),
            web.get(base + "/status/{job}", self._status),
            web.get(base + "/status-sync/{job}", self._status_sync),
            web.get(base + "/stream/{job}", self._stream),
            web.post(base + "/cancel/{job}", self._cancel),
            web.post(base + "/retry/{job}", self._retry),
            web.post(f"{base}/purge-queue", self._purge),
            web.get(f"{base}/health", self._health),
        ]

    async def _add(self, request: web.Request, route: str) -> Job:
        return await self._jobs.add(Job(await body_of(request, route), route))

    async def _run(self, request: web.Request) -> web.Response:
        return _brief(await self._add(request, "run"))

    async def _run_sync(self, request: web.Request) -> web.Response:
        return await self._when_over(request, await self._add(request, "runsync"))

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self._job_of(request).public())

    async def _status_sync(self, request: web.Request) -> web.Response:
        return await self._when_over(request, self._job_of(request))

    async def _when_over(self, request: web.Request, job: Job) -> web.Response:
        """Wait for the job's end, for `?wait=` milliseconds or for the plane's `hold`."""
        wait = request.query.get("wait")
        await self._jobs.hold_until(lambda: job.is_over, int(wait) / 1000 if wait else None)
        return web.json_response(job.public())

    async def _stream(self, request: web.Request) -> web.Response:
        job = self._job_of(request)
        await self._jobs.hold_until(lambda: job.is_over or len(job.chunks) > job.chunks_read)
        return web.json_response({"status": job.status, "stream": job.unread_chunks()})

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self._job_of(request)
        await self._jobs.cancel([job])
        return _brief(job)

    async def _retry(self, request: web.Request) -> web.Response:
        job = self._job_of(request)
        if not await self._jobs.retry(job):
            raise web.HTTPBadRequest(text=f"a job that is {job.status} cannot be retried")
        return _brief(job)

    async def _purge(self, _request: web.Request) -> web.Response:
        removed = await self._jobs.cancel(self._jobs.queued())
        return web.json_response({"removed": removed, "status": "completed"})

    async def _health(self, _request: web.Request) -> web.Response:
        states = Counter(job.status for job in self._jobs.by_id.values())
        jobs = {name: states[status] for name, status in COUNTED.items()}
        jobs["retried"] = self._jobs.retried
        return web.json_response({"jobs": jobs, "workers": self._worker_counts()})

    def _worker_counts(self) -> dict[str, int]:
        busy = {job.worker for job in self._jobs.by_id.values() if job.status == "IN_PROGRESS"}
        idle = self._workers.workers - self._workers.unhealthy - busy
        counts = {"idle": len(idle), "ready": len(idle), "running": len(busy)}
        unhealthy = len(self._workers.unhealthy)
        return counts | {"initializing": 0, "throttled": 0, "unhealthy": unhealthy}

    def _job_of(self, request: web.Request) -> Job:
        job = self._jobs.by_id.get(request.match_info["job"])
        if job is None:
            raise web.HTTPNotFound
        return job


async def body_of(request: web.Request, route: str, kind: type = dict) -> Any:
    """The JSON body of a call, within RunPod's limit for the route."""
    if len(await request.read()) > LONGEST_BODY[route]:
        raise web.HTTPRequestEntityTooLarge(LONGEST_BODY[route], request.content_length or 0)
    try:
        body = await request.json()
    except ValueError:
        raise web.HTTPBadRequest(text="the body is not JSON") from None
    if not isinstance(body, kind):
        raise web.HTTPBadRequest(text=f"the body must be a {kind.__name__}")
    if kind is dict and route != "batch" and "input" not in body:
        raise web.HTTPBadRequest(text="the body has no input")
    return body


def _brief(job: Job) -> web.Response:
    return web.json_response({"id": job.id, "status": job.status})
