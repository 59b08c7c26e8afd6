"""RunPod's half of a worker's protocol, on loopback: hands out jobs, stop signals, takes results.

The worker under proof runs the real SDK and transport against it. The tests have a larger one, in
tests/fakes/runpod_plane, which the images do not contain.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOLD_SECONDS = 2.0  # how long a poll waits for a job
POLL_SECONDS = 0.02
_BASE = "/v2/proof"


@dataclass
class Job:
    """A job, and when it was submitted and over (seconds of `time.monotonic`)."""

    id: str
    input: dict[str, Any]
    submitted: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    output: Any = None
    error: str = ""

    @property
    def seconds(self) -> float:
        """From its submission to its result."""
        return self.ended - self.submitted


class Plane:
    """The server; it runs in threads while the `with` block lasts."""

    def __init__(self) -> None:
        self.takes = 0  # how often a worker has asked for a job
        self._changed = threading.Condition()
        self._queue: list[Job] = []
        self._running: dict[str, Job] = {}
        self._stops: list[str] = []
        self._count = 0
        plane = self

        class Routes(_Routes):
            answers = plane

        self._server = _Server(("127.0.0.1", 0), Routes)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Plane:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self) -> dict[str, str]:
        """The variables by which the SDK finds this server."""
        url = f"http://127.0.0.1:{self._server.server_address[1]}{_BASE}"
        query = "?gpu=proof"  # the SDK appends "&...", so there must be a query
        return {
            "RUNPOD_POD_ID": "proof",
            "RUNPOD_ENDPOINT_ID": "proof",
            "RUNPOD_AI_API_KEY": "proof",
            "RUNPOD_WEBHOOK_GET_JOB": f"{url}/job-take/$ID{query}",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{url}/job-done/$RUNPOD_POD_ID/$ID{query}",
            "RUNPOD_WEBHOOK_PING": f"{url}/ping/$RUNPOD_POD_ID",
        }

    # The client's half -----------------------------------------------------------------------

    def submit(self, job_input: dict[str, Any]) -> Job:
        """Queue a job."""
        with self._changed:
            self._count += 1
            job = Job(f"job-{self._count}", job_input)
            self._queue.append(job)
            self._changed.notify_all()
        return job

    def cancel(self, job: Job) -> None:
        """End a job as a client does; the worker gets a stop signal for it."""
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)
            if self._running.pop(job.id, None):
                self._stops.append(job.id)
            job.error, job.ended = "cancelled", time.monotonic()
            self._changed.notify_all()

    def wait(self, job: Job, seconds: float) -> bool:
        """Wait for a job's end; returns whether it came in time."""
        return self.wait_until(lambda: bool(job.ended), seconds)

    def wait_until(self, happened: Callable[[], bool], seconds: float) -> bool:
        """Wait for something that a request of the worker changes."""
        with self._changed:
            return self._changed.wait_for(happened, seconds)

    # The worker's half -----------------------------------------------------------------------

    def get(self, route: str) -> Any:  # noqa: ANN401 - JSON; None for "nothing now"
        """Answer a poll."""
        if "/job-take" in route:
            return self._take()
        if "/job-stop/" in route:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._stops), HOLD_SECONDS)
                stopped, self._stops = self._stops, []
            return {"jobsToStop": stopped} if stopped else None
        return {}  # a ping

    def _take(self) -> dict[str, Any] | None:
        with self._changed:
            self.takes += 1
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: bool(self._queue), HOLD_SECONDS):
                return None
            job = self._queue.pop(0)
            self._running[job.id] = job
            return {"id": job.id, "input": job.input, "webhook": None}

    def post(self, job_id: str, body: dict[str, Any]) -> None:
        """Take a job's result; reports of its progress and late results are dropped."""
        with self._changed:
            if body.get("status") == "IN_PROGRESS" or job_id not in self._running:
                return
            job = self._running.pop(job_id)
            job.output, job.error = body.get("output"), str(body.get("error") or "")
            job.ended = time.monotonic()
            self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Nothing: a worker that ends closes its polls."""


class _Routes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answers: Plane

    def do_GET(self) -> None:
        self._answer(self.answers.get(self.path))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answers.post(self.path.partition("?")[0].rpartition("/")[2], body)
        self._answer({})

    def _answer(self, answer: Any) -> None:  # noqa: ANN401 - JSON
        content = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(200 if content else 204)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: the proof prints its own lines."""
