"""The worker behind HTTP without an engine: the real gateway, and a handler that does little.

As a program it is the worker; `running_gateway_worker` starts it for a test.

What a job's input may hold: `echo` for what its answer holds, `error` to fail with that text,
`until` a file exists (by default the one that UNTIL names), `chunks` for its stream, `retire` to
ask for a new worker.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import requests

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # as a program

from docs import metric_tables  # noqa: E402
from fakes.a1111.process import free_port, wait_until  # noqa: E402
from gateway.http.connections import ConnectionLimits  # noqa: E402
from gateway.http.guard import Access  # noqa: E402
from gateway.local.jobs import LocalJobs  # noqa: E402
from gateway.local.metrics import Metrics  # noqa: E402
from gateway.local.place import Place  # noqa: E402
from gateway.local.webhooks import WebhookLimits, Webhooks  # noqa: E402
from gateway.server import Ending, serve  # noqa: E402
from worker.errors import EngineNotReady  # noqa: E402
from worker.service.counters import Counters, Outcome  # noqa: E402
from worker.service.progress import JobProgress  # noqa: E402
from worker.service.report import Queue  # noqa: E402
from worker.stopwatch import Stopwatch  # noqa: E402

Answer = dict[str, Any]


def note(event: str, job: Answer) -> None:
    """Add a line to the file EVENTS."""
    with Path(os.environ["EVENTS"]).open("a") as events:
        events.write(f"{event} {json.dumps(job['input'].get('echo'))}\n")


async def until(file: str) -> None:
    while not Path(file).exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.01)


async def handler(job: Answer) -> Answer:
    """Do what the input asks for, and note when it began and how it ended."""
    wanted = job["input"]
    note("began", job)
    try:
        if file := wanted.get("until", os.environ.get("UNTIL")):
            await until(file)
    except asyncio.CancelledError:
        note("cancelled", job)
        raise
    note("ended", job)
    if "error" in wanted:
        text = wanted["error"]
        return {"error": text, "message": "Failed", "code": "INVALID_INPUT", "detail": text}
    retire = {"refresh_worker": True} if wanted.get("retire") else {}
    return {"echo": wanted.get("echo"), "timings": {"generate": 2.5, "total": 3.0}, **retire}


def boot() -> Ending | None:
    """The engine is ready, or when the file BOOT exists, or it fails then."""
    *fails, file = os.environ.get("BOOT", "").split("fails after ")
    while file and not Path(file).exists():
        time.sleep(0.01)
    return Ending(69, EngineNotReady("no picture within 1 s.")) if fails else None


async def main(place: Place, access: Access) -> int:
    counters = Counters()

    async def counted(job: Answer) -> Answer:
        if post := jobs.stream_of(job):
            for chunk in job["input"].get("chunks", ()):
                await post(chunk, again=True)
        stopwatch = Stopwatch(600)
        with counters.running(job["id"], JobProgress(), stopwatch) as running:
            with stopwatch.phase("generate"):
                running.answer = await handler(job)
            return dict(running.answer)

    def aborted(job_id: str, _input: object, status: str, code: str) -> None:
        counters.abort(job_id, "unknown", cast("Outcome", status.lower()), code)

    webhooks = Webhooks(allow_loopback=True, limits=WebhookLimits(pause=0.01))
    jobs = LocalJobs(
        counted, is_quick=lambda given: "quick" in given, webhooks=webhooks, aborted=aborted
    )
    counters.queue = lambda: Queue.model_construct(None, **jobs.queue())
    metrics = Metrics(counters, lambda: metric_tables.worker(counters), metric_tables.measured)
    limits = ConnectionLimits(**json.loads(os.environ.get("LIMITS", "{}")))
    return await serve(jobs, boot, metrics=metrics, access=access, place=place, limits=limits)


class GatewayWorker:
    """The running program."""

    def __init__(self, folder: Path, place: dict[str, Any], access: Answer, **environ: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.go = folder / "go"
        self._events, self._log = folder / "events", folder / "gateway.log"
        self._events.touch()
        arguments = [json.dumps({"host": "127.0.0.1", "port": self.port} | place)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, *arguments, json.dumps(access)],
                env={"PATH": os.environ["PATH"], "EVENTS": str(self._events)} | environ,
                stdout=log,
                stderr=log,
            )

    def events(self) -> list[str]:
        return self._events.read_text().splitlines()

    def wait_for(self, event: str) -> None:
        wait_until(lambda: event in self.events(), f"{event}; {self.events()}")

    def log(self) -> str:
        return self._log.read_text()

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return requests.get(f"{self.url}/ping", timeout=5).status_code in {200, 204}
        except requests.ConnectionError:
            return False

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=30)

    def post(self, path: str, body: Any = None) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=30)

    def run(self, job_input: Answer, **beside: Any) -> str:
        """Queue a job; returns its id."""
        return str(self.post("/run", {"input": job_input, **beside}).json()["id"])

    def status(self, job_id: str) -> Answer:
        answer: Answer = self.get(f"/status/{job_id}").json()
        return answer

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> int:
        return self.process.wait(30)


@contextmanager
def running_gateway_worker(
    folder: Path, place: Answer | None = None, access: Answer | None = None, **environ: str
) -> Iterator[GatewayWorker]:
    """The program, once it answers; `place` and `access` are fields of Place and Access."""
    worker = GatewayWorker(folder, place or {}, access or {}, **environ)
    try:
        wait_until(worker.answers, "the gateway's first answer")
        yield worker
    finally:
        worker.process.kill()
        worker.process.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Place(**json.loads(sys.argv[1])), Access(**json.loads(sys.argv[2])))))
