"""A RunPod queue endpoint on loopback: the client's half of RunPod's API, for tests of clients.

    states = lambda job_input: [queued(), progress(percent=50), completed(images=["..."])]
    with RunPodEndpoint(states) as endpoint:
        ...start a client with endpoint.environ()...
        assert endpoint.wait_for("cancel")["id"] == endpoint.job_ids[0]

A job moves by one state each time its status is read, and stays in the last one, so a test depends
on no clock. It is a model of RunPod's API after its documents. Routes are below `/v2/ep0` (with the
key) and below `/` (without, as `make serve` has them); `/bucket/NAME` serves files.
"""

import asyncio
import ssl
import threading
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

ENDPOINT, KEY = "ep0", "rpa_FAKE_KEY"
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}
GONE: dict[str, Any] = {"status": "GONE"}  # as after 30 minutes: the status is a 404

State = dict[str, Any]
Event = dict[str, Any]


def queued() -> State:
    return {"status": "IN_QUEUE"}


def progress(**report: Any) -> State:
    """A running job; `report` is the worker's newest progress report."""
    return {"status": "IN_PROGRESS", **({"output": report} if report else {})}


def completed(**output: Any) -> State:
    return {"status": "COMPLETED", "output": output}


def failed(error: str, **output: Any) -> State:
    return {"status": "FAILED", "error": error, **({"output": output} if output else {})}


@dataclass
class Fault:
    """One way in which a route answers for the next `times` calls.

    Attributes:
        status, body, headers: of the answer; status 0: the route does its work, and its answer is
            what `cut`, `drop` and `hold` treat.
        drop: close the connection without an answer.
        cut: announce more bytes than are sent, then close.
        endless: send bytes until the client closes.
        hold: do not answer before `release()`.
    """

    route: str
    times: int = 1
    status: int = 0
    body: str | bytes = ""
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    cut: bool = False
    endless: bool = False
    hold: bool = False


class _Job:
    def __init__(self, request: dict[str, Any], states: Iterable[State]) -> None:
        self.id, self.request = f"{uuid.uuid4()}-e1", request
        self._states = iter(states)
        self.state = queued()

    def advance(self) -> None:
        if self.state["status"] not in FINAL:
            self.state = next(self._states, self.state)

    def public(self) -> dict[str, Any]:
        shown = {name: value for name, value in self.state.items() if name != "stream"}
        return {"id": self.id, "delayTime": 12, "executionTime": 34, **shown}


class RunPodEndpoint:
    """The endpoint; its server runs in its own thread while the `with` block lasts.

    `states` gives, for a job's input, the states that the job has one after the other. `port` is
    chosen by the system if it is 0. `context` makes it an https server.
    """

    def __init__(
        self,
        states: Callable[[Any], Iterable[State]],
        port: int = 0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.states = states
        self.port = port
        self._context = context
        self.health: dict[str, Any] = {
            "jobs": {"completed": 1, "failed": 0, "inProgress": 0, "inQueue": 0, "retried": 0},
            "workers": {"idle": 1, "initializing": 0, "ready": 1, "running": 0, "throttled": 0},
        }
        self.files: dict[str, bytes] = {}  # of the bucket
        self._jobs: dict[str, _Job] = {}
        self._faults: list[Fault] = []
        self._events: list[Event] = []
        self._changed = threading.Condition()  # wakes the waiting test
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "RunPodEndpoint":
        self._thread.start()
        self._in_loop(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._in_loop(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _in_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _start(self) -> None:
        self._released = asyncio.Event()
        app = web.Application(client_max_size=2**30)
        for base in (f"/v2/{ENDPOINT}", ""):
            app.add_routes(
                [
                    web.post(f"{base}/run", self._route("run", self._run)),
                    web.post(f"{base}/runsync", self._route("runsync", self._runsync)),
                    web.get(f"{base}/status/{{id}}", self._route("status", self._status)),
                    web.post(f"{base}/status/{{id}}", self._route("status", self._status)),
                    web.get(f"{base}/stream/{{id}}", self._route("stream", self._stream)),
                    web.post(f"{base}/cancel/{{id}}", self._route("cancel", self._cancel)),
                    web.post(f"{base}/purge-queue", self._route("purge", self._purge)),
                    web.get(f"{base}/health", self._route("health", self._health)),
                ]
            )
        app.add_routes([web.get("/ping", self._route("ping", self._health))])
        app.add_routes([web.get("/bucket/{name}", self._route("bucket", self._bucket))])
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._context)
        await site.start()
        self.port = self._runner.addresses[0][1]

    # For tests.

    @property
    def url(self) -> str:
        """RUNPOD_URL of this endpoint."""
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.port}"

    def environ(self) -> dict[str, str]:
        """The environment in which a client finds this endpoint."""
        names = {"RUNPOD_URL": self.url, "RUNPOD_ENDPOINT_ID": ENDPOINT, "RUNPOD_API_KEY": KEY}
        return {**names, "no_proxy": "*"}

    @property
    def job_ids(self) -> list[str]:
        """Of all jobs, oldest first."""
        return list(self._jobs)

    def inputs(self) -> list[Any]:
        """The input of every job that was submitted, oldest first."""
        return [job.request.get("input") for job in self._jobs.values()]

    def status(self, job_id: str) -> str:
        """A job's state now."""
        return str(self._jobs[job_id].state["status"])

    def fault(self, route: str, **how: Any) -> None:
        """Let a route fail (run, status, cancel, health, ping, bucket, ...); see `Fault`."""
        self._faults.append(Fault(route, **how))

    def release(self) -> None:
        """Let all answers go that a fault holds, now and from now on."""
        self._loop.call_soon_threadsafe(self._released.set)

    def events(self, kind: str | None = None) -> list[Event]:
        """The requests so far, in order: `kind` is the route; also `id`, `headers`, `path`."""
        return [event for event in list(self._events) if kind in (None, event["kind"])]

    def forget_events(self) -> None:
        """Begin again without events."""
        self._events.clear()

    def wait_for(self, kind: str, timeout: float = 30, count: int = 1) -> Event:
        """The request that makes it `count` of this kind; TimeoutError if it does not come."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.events(kind)) >= count, timeout):
                raise TimeoutError(f"no {count} x {kind} within {timeout} s; seen: {self._events}")
        return self.events(kind)[count - 1]

    # The routes; all of this runs in the loop.

    def _route(self, name: str, work: Callable[[web.Request], Any]) -> Any:
        async def answer(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            self._note(name, request, body)
            authorized = request.headers.get("authorization") == f"Bearer {KEY}"
            if request.path.startswith("/v2/") and not authorized:
                return web.Response(status=401)
            found = next((one for one in self._faults if one.route == name and one.times), None)
            if found is None:
                return await work(request)
            found.times -= 1
            return await self._fail(found, request, work)

        return answer

    def _note(self, kind: str, request: web.Request, body: bytes) -> None:
        with self._changed:
            seen = {"kind": kind, "id": request.match_info.get("id"), "path": request.path}
            self._events.append({**seen, "headers": dict(request.headers), "body": body})
            self._changed.notify_all()

    async def _fail(
        self, fault: Fault, request: web.Request, work: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        if fault.status:
            body = fault.body.encode() if isinstance(fault.body, str) else fault.body
            answer = web.Response(status=fault.status, body=body, headers=fault.headers)
        else:
            answer = await work(request)
        if fault.hold:
            await self._released.wait()
        if fault.drop and request.transport:
            request.transport.abort()
        if fault.cut or fault.endless:
            return await self._broken(request, bytes(answer.body or b"{"), endless=fault.endless)
        return answer

    async def _broken(
        self, request: web.Request, body: bytes, *, endless: bool
    ) -> web.StreamResponse:
        answer = web.StreamResponse()
        answer.content_length = None if endless else len(body) + 100
        await answer.prepare(request)
        with suppress(ConnectionError):
            await answer.write(body)
            while endless:
                await answer.write(b" " * 65536)
        if request.transport:
            request.transport.abort()
        return answer

    def _found(self, request: web.Request) -> _Job:
        job = self._jobs.get(request.match_info["id"])
        if job is None:
            raise web.HTTPNotFound(text='{"error": "job not found"}')
        return job

    async def _add(self, request: web.Request) -> _Job:
        try:
            body = await request.json()
        except ValueError:
            raise web.HTTPBadRequest(text='{"error": "not JSON"}') from None
        if not isinstance(body, dict) or "input" not in body:
            raise web.HTTPBadRequest(text='{"error": "no input"}')
        job = _Job(body, self.states(body["input"]))
        self._jobs[job.id] = job
        return job

    async def _run(self, request: web.Request) -> web.Response:
        job = await self._add(request)
        return web.json_response({"id": job.id, "status": "IN_QUEUE"})

    async def _runsync(self, request: web.Request) -> web.Response:
        job, before = await self._add(request), None
        while before is not job.state:  # until it is over, or stays as it is
            before = job.state
            job.advance()
        return web.json_response(job.public())

    async def _status(self, request: web.Request) -> web.Response:
        job = self._found(request)
        job.advance()
        if job.state is GONE:
            raise web.HTTPNotFound(text='{"error": "job not found"}')
        return web.json_response(job.public())

    async def _stream(self, request: web.Request) -> web.Response:
        """The `stream` of the job's next state: chunks, each shown once."""
        job = self._found(request)
        job.advance()
        chunks = [{"output": chunk} for chunk in job.state.get("stream", [])]
        job.state = job.state | {"stream": []}
        return web.json_response({"status": job.state["status"], "stream": chunks})

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self._found(request)
        if job.state["status"] not in FINAL:
            job.state = {"status": "CANCELLED"}
        return web.json_response({"id": job.id, "status": job.state["status"]})

    async def _purge(self, _: web.Request) -> web.Response:
        waiting = [job for job in self._jobs.values() if job.state["status"] == "IN_QUEUE"]
        for job in waiting:
            job.state = {"status": "CANCELLED"}
        return web.json_response({"removed": len(waiting), "status": "completed"})

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response(self.health)

    async def _bucket(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.files:
            raise web.HTTPNotFound
        return web.Response(body=self.files[name])
