"""A RunPod control plane on loopback, for tests that drive a worker through the real SDK.

    with RunPodPlane() as plane:
        ...start a worker with plane.worker_env()...
        job_id = plane.submit({"prompt": "a fox"})
        assert plane.wait(job_id, timeout=30)["status"] == "COMPLETED"

It speaks the worker's half of the API (job-take, job-done, job-stop, ping), and the client's half:
as routes (`client_url`) and as its methods. What happens behind RunPod's routes is not public; this
is a model of it, after RunPod's documents and the SDK's code.
"""

import asyncio
import json
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from aiohttp import web

Event = dict[str, Any]
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}
EXECUTION_TIMEOUT_MS = 600_000
POD = "pod0"


@dataclass
class Job:
    """One job from its submission to its result."""

    request: dict[str, Any]
    id: str = field(default_factory=lambda: f"{uuid.uuid4()}-e1")
    status: str = "IN_QUEUE"
    worker: str | None = None
    output: Any = None
    error: Any = None
    is_streamed: bool = False

    def public(self) -> dict[str, Any]:
        """The job as the client API shows it."""
        shown = {"id": self.id, "status": self.status, "workerId": self.worker}
        shown |= {"output": self.output, "error": self.error}
        return {key: value for key, value in shown.items() if value is not None}

    def for_worker(self) -> dict[str, Any]:
        """The job as job-take sends it."""
        return {"id": self.id, "input": self.request["input"], "webhook": None}


@dataclass
class Fault:
    """One way in which a route fails for some calls."""

    route: str
    status: int = 500
    times: int = 1
    drop: bool = False
    job: str | None = None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class RunPodPlane:
    """The control plane; its server runs in its own thread while the `with` block lasts.

    `hold` is how long it holds a poll, in seconds.
    """

    def __init__(self, *, hold: float = 2.0) -> None:
        self.hold = hold
        self.port = 0
        self._jobs: dict[str, Job] = {}
        self._stops: dict[str, list[str]] = defaultdict(list)
        self._faults: list[Fault] = []
        self._events: list[Event] = []
        self._changed = threading.Condition()  # wakes the waiting test
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "RunPodPlane":
        self._thread.start()
        self._in_loop(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._in_loop(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _in_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _start(self) -> None:
        self._news = asyncio.Condition()  # wakes the long polls
        app = web.Application(client_max_size=2**30)
        base = "/v2/ep0"
        polls = {"job-stop": self._stop, "ping": self._ping}
        polls |= {"job-take": self._take, "job-take-batch": self._take}
        app.add_routes([web.get(f"{base}/{name}/{{worker}}", polls[name]) for name in polls])
        app.add_routes([web.post(base + "/job-done/{worker}/{job}", self._done)])
        app.add_routes(self._client_routes(base))
        # A worker that closes its poll must not be sent a job, so its handler is cancelled.
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    # The client's half of the API.

    def _client_routes(self, base: str) -> list[web.RouteDef]:
        return [
            web.post(f"{base}/run", self._run),
            web.post(f"{base}/runsync", self._run_sync),
            web.get(base + "/status/{job}", self._status),
            web.get(base + "/status-sync/{job}", self._status_sync),
            web.get(base + "/stream/{job}", self._stream),
            web.post(base + "/cancel/{job}", self._cancel),
            web.post(f"{base}/purge-queue", self._purge),
            web.get(f"{base}/health", self._health),
        ]

    async def _run(self, request: web.Request) -> web.Response:
        return web.json_response((await self._add(await request.json())).public())

    async def _run_sync(self, request: web.Request) -> web.Response:
        return await self._when_over(await self._add(await request.json()))

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self._job_of(request).public())

    async def _status_sync(self, request: web.Request) -> web.Response:
        return await self._when_over(self._job_of(request))

    async def _stream(self, request: web.Request) -> web.Response:
        """This worker's jobs yield nothing, so it is their output, once."""
        job = self._job_of(request)
        await self._when_over(job)
        chunks = [] if job.is_streamed or job.status not in FINAL else [{"output": job.output}]
        job.is_streamed |= bool(chunks)
        return web.json_response({"status": job.status, "stream": chunks})

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self._job_of(request)
        await self._end(job, "CANCELLED")
        return web.json_response({"id": job.id, "status": job.status})

    async def _purge(self, _request: web.Request) -> web.Response:
        waiting = [job for job in self._jobs.values() if job.status == "IN_QUEUE"]
        for job in waiting:
            await self._end(job, "CANCELLED")
        return web.json_response({"removed": len(waiting), "status": "completed"})

    async def _health(self, _request: web.Request) -> web.Response:
        states = [job.status for job in self._jobs.values()]
        names = {"completed": "COMPLETED", "failed": "FAILED", "inQueue": "IN_QUEUE"}
        jobs = {name: states.count(status) for name, status in names.items()}
        workers = {"idle": 1, "initializing": 0, "ready": 1, "running": 0, "throttled": 0}
        jobs |= {"inProgress": states.count("IN_PROGRESS"), "retried": 0}
        return web.json_response({"jobs": jobs, "workers": workers})

    def _job_of(self, request: web.Request) -> Job:
        if request.match_info["job"] not in self._jobs:
            raise web.HTTPNotFound
        return self._jobs[request.match_info["job"]]

    async def _when_over(self, job: Job) -> web.Response:
        await self._hold_until(lambda: job.status in FINAL)
        return web.json_response(job.public())

    # For tests.

    @property
    def client_url(self) -> str:
        """The base URL for RunPod's clients; the endpoint is `ep0`."""
        return self.url.removesuffix("/ep0")

    @property
    def url(self) -> str:
        """The base of all routes."""
        return f"http://127.0.0.1:{self.port}/v2/ep0"

    def worker_env(self) -> dict[str, str]:
        """The environment in which the SDK works for this plane."""
        query = "?gpu=FAKE"  # the SDK appends "&…", so a query must be there
        return {
            "RUNPOD_POD_ID": POD,
            "RUNPOD_POD_HOSTNAME": f"{POD}-host",
            "RUNPOD_ENDPOINT_ID": "ep0",
            "RUNPOD_AI_API_KEY": "fake-key",
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.url}/job-take/$ID{query}",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.url}/job-done/$RUNPOD_POD_ID/$ID{query}",
            "RUNPOD_WEBHOOK_PING": f"{self.url}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": "1000",  # ms
        }

    def submit(self, job_input: Any, **request: Any) -> str:
        """Queue a job, with `policy=…` beside its input; returns its id.

        `id=…` sets the id, so that a fault can be prepared for it.
        """
        return str(self._in_loop(self._add({"input": job_input, **request})).id)

    def status(self, job_id: str) -> dict[str, Any]:
        """The public view of a job."""
        return self._jobs[job_id].public()

    def cancel(self, job_id: str) -> None:
        """Cancel a job as a client does."""
        self._in_loop(self._end(self._jobs[job_id], "CANCELLED"))

    def wait(self, job_id: str, timeout: float) -> dict[str, Any]:
        """The public view of a job once it is over; TimeoutError if that takes too long."""
        job = self._jobs[job_id]
        self._await(lambda: job.status in FINAL, timeout, f"the end of {job}")
        return job.public()

    def wait_until_taken(self, job_id: str) -> str:
        """Wait until a worker has the job; returns its id."""
        job = self._jobs[job_id]
        self._await(lambda: job.status != "IN_QUEUE", 30, f"start of {job}")
        return job_id

    def events(self, kind: str | None = None) -> list[Event]:
        """What happened so far, in order."""
        return [event for event in list(self._events) if kind in (None, event["kind"])]

    def wait_for(self, kind: str, timeout: float, count: int = 1) -> Event:
        """The event that makes it `count` of this kind; TimeoutError if it does not come."""
        self._await(lambda: len(self.events(kind)) >= count, timeout, f"{count} x {kind}")
        return self.events(kind)[count - 1]

    def fault(self, route: str, **how: Any) -> None:
        """Let a route (job-take, job-done, job-stop, ping) fail, or only for the job named."""
        self._faults.append(Fault(route, **how))

    def _await(self, reached: Callable[[], bool], timeout: float, what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(reached, timeout):
                raise TimeoutError(f"no {what} within {timeout} s; seen: {self._events[-20:]}")

    # The life of a job; all of it runs in the loop.

    def _note(self, kind: str, **details: Any) -> None:
        with self._changed:
            self._events.append({"kind": kind, "time": time.monotonic(), **details})
            self._changed.notify_all()

    async def _announce(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _add(self, request: dict[str, Any]) -> Job:
        job = Job(request, **({"id": request.pop("id")} if "id" in request else {}))
        self._jobs[job.id] = job
        self._note("submit", id=job.id)
        await self._announce()
        return job

    async def _end(self, job: Job, status: str, **result: Any) -> None:
        """Give a job its final state, once; a running job that ends otherwise is stopped."""
        if job.status in FINAL:
            return
        if job.status == "IN_PROGRESS" and status in {"CANCELLED", "TIMED_OUT"}:
            self._stops[str(job.worker)].append(job.id)
        job.status, job.output, job.error = status, result.get("output"), result.get("error")
        self._note(status.lower(), id=job.id)
        await self._announce()

    def _give(self, job: Job, worker: str) -> dict[str, Any]:
        job.status, job.worker = "IN_PROGRESS", worker
        policy = job.request.get("policy", {})
        allowed = policy.get("executionTimeout", EXECUTION_TIMEOUT_MS) / 1000
        self._loop.call_later(allowed, self._expire, job)
        return job.for_worker()

    def _expire(self, job: Job) -> None:
        ending = self._end(job, "TIMED_OUT", error="job timed out")
        self._expiry = self._loop.create_task(ending)

    async def _hold_until(self, reached: Callable[[], bool]) -> None:
        """Hold a poll until there is something to answer, at most for `hold` seconds."""
        async with self._news:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait_for(reached), self.hold)

    # The worker's half of the API.

    async def _failure(self, route: str, request: web.Request) -> web.Response | None:
        jobs = {None, request.match_info.get("job")}
        fitting = (one for one in self._faults if one.route == route and one.job in jobs)
        fault = next((one for one in fitting if one.times), None)
        if fault is None:
            return None
        fault.times -= 1
        self._note("fault", route=route)
        if fault.drop and request.transport:
            request.transport.abort()
        return web.Response(status=fault.status, text="fault")

    async def _take(self, request: web.Request) -> web.Response:
        worker = request.match_info["worker"]
        batch_size = int(request.query.get("batch_size", 0))
        self._note("take", worker=worker, query=dict(request.query))
        if failure := await self._failure("job-take", request):
            return failure

        def queued() -> list[Job]:
            return [job for job in self._jobs.values() if job.status == "IN_QUEUE"]

        await self._hold_until(lambda: bool(queued()))
        given = [self._give(job, worker) for job in queued()[: batch_size or 1]]
        if not given:
            return web.Response(status=204)
        self._note("given", worker=worker, ids=[job["id"] for job in given])
        return web.json_response(given if batch_size else given[0])

    async def _done(self, request: web.Request) -> web.Response:
        job_id, raw = request.match_info["job"], await request.read()
        if failure := await self._failure("job-done", request):
            return failure
        try:  # Python's NaN and Infinity are errors, as on RunPod
            body = json.loads(raw, parse_constant=_refuse_constant)
        except ValueError as error:
            self._note("done-bad-json", id=job_id, error=str(error))
            return web.Response(status=400, text="bad json")
        if job_id not in self._jobs:
            return web.Response(status=404, text="no such job")
        await self._accept(self._jobs[job_id], body, len(raw))
        return web.json_response({})

    async def _accept(self, job: Job, body: dict[str, Any], size: int) -> None:
        late, output = job.status in FINAL, body.get("output")
        if body.get("status") == "IN_PROGRESS":
            job.output = job.output if late else output
            self._note("progress", id=job.id, output=output, late=late)
            return
        self._note("done", id=job.id, size=size, body=body, late=late)
        status = "FAILED" if body.get("error") else "COMPLETED"
        await self._end(job, status, output=output, error=body.get("error"))

    async def _stop(self, request: web.Request) -> web.Response:
        worker = request.match_info["worker"]
        self._note("stop-poll", worker=worker)
        if failure := await self._failure("job-stop", request):
            return failure
        await self._hold_until(lambda: bool(self._stops[worker]))
        job_ids = self._stops.pop(worker, [])
        if not job_ids:
            return web.Response(status=204)
        self._note("stop-given", worker=worker, ids=job_ids)
        return web.json_response({"jobsToStop": job_ids})

    async def _ping(self, request: web.Request) -> web.Response:
        self._note("ping", worker=request.match_info["worker"], query=dict(request.query))
        return await self._failure("ping", request) or web.json_response({})
