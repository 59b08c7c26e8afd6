"""The control plane's server, and what tests do with it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from fakes.runpod_plane.batch_routes import BatchRoutes
from fakes.runpod_plane.client_routes import ClientRoutes
from fakes.runpod_plane.job import Job
from fakes.runpod_plane.jobs import Event, Jobs
from fakes.runpod_plane.worker_routes import WorkerRoutes

POD = "pod0"
BASE = "/v2/ep0"
OK = 200
# The worker's calls that are events of their own.
NOTED = {"job-take": "take", "job-stop": "stop-poll", "ping": "ping"}


@dataclass
class Fault:
    """One way in which a route fails for some calls.

    Attributes:
        drop: break the connection instead of an answer.
        is_done: do what the call asks for, before it fails.
        delay: seconds before the call is looked at; with status 200 nothing else is wrong.
    """

    route: str
    status: int = 500
    times: int = 1
    drop: bool = False
    is_done: bool = False
    delay: float = 0.0
    job: str | None = None


class RunPodPlane:
    """The control plane; its server runs in its own thread while the `with` block lasts.

    `hold` is for how many seconds it holds a poll, `webhook_pause` how many seconds are between
    two attempts at a webhook (RunPod: 10).
    """

    def __init__(self, *, hold: float = 2.0, webhook_pause: float = 10.0) -> None:
        self.port = 0
        self._holds = hold, webhook_pause
        self._faults: list[Fault] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "RunPodPlane":
        self._thread.start()
        self._in_loop(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._in_loop(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _in_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _start(self) -> None:
        self._jobs = Jobs(*self._holds)
        workers = WorkerRoutes(self._jobs)
        app = web.Application(client_max_size=2**30, middlewares=[self._middleware()])
        for half in (workers, ClientRoutes(self._jobs, workers), BatchRoutes(self._jobs)):
            app.add_routes(half.routes(BASE))
        # A worker that closes its poll must not be sent a job, so its handler is cancelled.
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    async def _end(self) -> None:
        await self._jobs.close()
        await self._runner.cleanup()

    def _middleware(self) -> Any:
        @web.middleware
        async def middleware(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            route = request.path.removeprefix(BASE).split("/")[1].removesuffix("-batch")
            if route in NOTED:
                worker = request.match_info["worker"]
                self._jobs.note(NOTED[route], worker=worker, query=dict(request.query))
            fault = self._fault(route, request)
            if fault is None:
                return await handler(request)
            await asyncio.sleep(fault.delay)
            if fault.status == OK:
                return await handler(request)
            await (handler(request) if fault.is_done else request.read())
            return self._failure(fault, request)

        return middleware

    def _fault(self, route: str, request: web.Request) -> Fault | None:
        jobs = {None, request.match_info.get("job")}
        fitting = (one for one in self._faults if one.route == route and one.job in jobs)
        fault = next((one for one in fitting if one.times), None)
        if fault:
            fault.times -= 1
            self._jobs.note("fault", route=route)
        return fault

    def _failure(self, fault: Fault, request: web.Request) -> web.Response:
        if fault.drop and request.transport:
            request.transport.abort()
        return web.Response(status=fault.status, text="fault")

    # For tests.

    @property
    def client_url(self) -> str:
        """The base URL for RunPod's clients; the endpoint is `ep0`."""
        return self.url.removesuffix("/ep0")

    @property
    def url(self) -> str:
        """The base of all routes."""
        return f"http://127.0.0.1:{self.port}{BASE}"

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
            "RUNPOD_WEBHOOK_POST_STREAM": f"{self.url}/job-stream/$RUNPOD_POD_ID/$ID{query}",
            "RUNPOD_WEBHOOK_PING": f"{self.url}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": "1000",  # ms
        }

    def submit(self, job_input: Any, *, extra: Any = None, via: str = "run", **request: Any) -> str:
        """Queue a job, with `policy=…`, `s3Config=…` or `webhook=…` beside its input.

        Returns its id; `id=…` sets it, so that a fault can be prepared for it. `extra` has further
        keys that job-take shows to the worker, and `via` is the client's route.
        """
        job_id = request.pop("id", "")
        job = Job({"input": job_input, **request}, via, extra=extra or {}, id=job_id)
        return str(self._in_loop(self._jobs.add(job)).id)

    def status(self, job_id: str) -> dict[str, Any]:
        """The public view of a job; KeyError if it is gone."""
        return self._jobs.by_id[job_id].public()

    def cancel(self, job_id: str) -> None:
        """Cancel a job as a client does."""
        self._in_loop(self._jobs.cancel([self._jobs.by_id[job_id]]))

    def expire(self, job_id: str) -> None:
        """Let a job's `ttl` end now."""
        self._in_loop(self._jobs.expire(self._jobs.by_id[job_id]))

    def time_out(self, job_id: str) -> None:
        """Let a job's execution timeout end now."""
        job = self._jobs.by_id[job_id]
        self._in_loop(self._jobs.time_out(job, job.attempt))

    def wait(self, job_id: str, timeout: float) -> dict[str, Any]:
        """The public view of a job once it is over; TimeoutError if that takes too long."""
        job = self._jobs.by_id[job_id]
        self._await(lambda: job.is_over, timeout, f"the end of {job}")
        return job.public()

    def wait_until_taken(self, job_id: str) -> str:
        """Wait until a worker has the job; returns its id."""
        job = self._jobs.by_id[job_id]
        self._await(lambda: job.status != "IN_QUEUE", 30, f"start of {job}")
        return job_id

    def events(self, kind: str | None = None) -> list[Event]:
        """What happened so far, in order."""
        return [event for event in list(self._jobs.events) if kind in (None, event["kind"])]

    def wait_for(self, kind: str, timeout: float, count: int = 1) -> Event:
        """The event that makes it `count` of this kind; TimeoutError if it does not come."""
        self._await(lambda: len(self.events(kind)) >= count, timeout, f"{count} x {kind}")
        return self.events(kind)[count - 1]

    def forget(self) -> None:
        """Drop the jobs that have ended and all events: their pictures take memory."""
        self._in_loop(self._jobs.forget())

    def fault(self, route: str, **how: Any) -> None:
        """Let a route, such as job-done or run, fail for some calls, or only for the job named."""
        self._faults.append(Fault(route, **how))

    def no_faults(self) -> None:
        """Let all routes work again."""
        self._faults.clear()

    def deliver_again(self, job_id: str) -> None:
        """Give a worker a job that it has, or has done: RunPod may deliver a job twice."""
        self._in_loop(self._jobs.deliver_again(self._jobs.by_id[job_id]))

    def lose(self, worker: str) -> list[str]:
        """A worker is gone: its jobs are queued again, as RunPod does; returns their ids."""
        return list(self._in_loop(self._jobs.lose(worker)))

    def _await(self, reached: Callable[[], bool], timeout: float, what: str) -> None:
        with self._jobs.changed:
            if not self._jobs.changed.wait_for(reached, timeout):
                seen = self._jobs.events[-20:]
                raise TimeoutError(f"no {what} within {timeout} s; seen: {seen}")
