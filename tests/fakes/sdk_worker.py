"""A worker without an engine: the real SDK, our transport or none, and a handler that does little.

As a program it is the worker; `running_sdk_worker` starts it for a test or a benchmark.

What a job's input may hold: `seconds` to work, `until` a file exists, `hang` to block the event
loop, `thread` to start one that never ends, `error` to fail with that text, `progress` for so many
reports before the result, `chunks` for its stream, `echo` for what it holds.
"""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # as a program

import runpod_sdk  # noqa: E402
from fakes.runpod_plane import RunPodPlane  # noqa: E402
from worker.runpod.timing import TransportTiming  # noqa: E402


async def handler(job: dict[str, Any]) -> dict[str, Any]:
    """Do what the input asks for, and note in the file TIMES when the job began and ended."""
    wanted = job["input"]
    began = time.monotonic()
    if wanted.get("hang"):
        time.sleep(wanted["hang"])  # noqa: ASYNC251 - that is the fault
    if wanted.get("thread"):
        threading.Thread(target=threading.Event().wait, name="stuck").start()
    try:
        await asyncio.sleep(wanted.get("seconds", 0))
        while "until" in wanted and not Path(wanted["until"]).exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.02)
    finally:
        with Path(os.environ["TIMES"]).open("a") as times:  # noqa: ASYNC230
            times.write(f"{job['id']} {began} {time.monotonic()}\n")
    if "error" in wanted:
        return {"error": wanted["error"], "detail": wanted["error"], "code": "INVALID_INPUT"}
    for number in range(wanted.get("progress", 0)):
        await runpod_sdk.post_progress(job, number)
    if post := runpod_sdk.stream_of(job):
        for chunk in wanted.get("chunks", ()):
            await post(chunk, again=True)
    return {"echo": wanted.get("echo")}


async def generator(job: dict[str, Any]) -> AsyncIterator[Any]:
    """Yield what the input's `chunks` hold; the plain SDK posts them to job-stream."""
    for chunk in job["input"]["chunks"]:
        yield chunk


class SdkWorker:
    """The running program."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.times_file = folder / "times"
        self.times_file.touch()
        self.log_file = folder / "sdk-worker.log"
        own = {"PATH": os.environ["PATH"], "RUNPOD_LOG_LEVEL": "WARN"}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                env=own | {"TIMES": str(self.times_file)} | environ,
                stdout=log,
                stderr=log,
                start_new_session=True,  # as start.sh does
            )

    def log(self) -> str:
        """Everything that it wrote."""
        return self.log_file.read_text()

    def times(self) -> list[tuple[str, float, float]]:
        """Job, begin and end of every run of the handler, in order of their ends."""
        rows = (line.split() for line in self.times_file.read_text().splitlines())
        return [(job, float(began), float(ended)) for job, began, ended in rows]


@contextmanager
def running_sdk_worker(
    folder: Path,
    plane: RunPodPlane,
    *,
    port: int | None = None,
    timing: dict[str, float] | None = None,
    **environ: str,
) -> Iterator[SdkWorker]:
    """Start one and wait until it takes jobs; it is killed at the end.

    `PLAIN="1"` leaves our transport out, and with `YIELDS="1"` its handler is a generator.
    `OTHER_SDK="1"` lets the SDK look like another release, `CONCURRENCY` is how many jobs it runs
    at once. `timing` has fields of TransportTiming, `port` is that of a line between the worker
    and the plane.
    """
    seen = len(plane.events("take"))
    urls = {
        name: value.replace(f":{plane.port}/", f":{port or plane.port}/")
        for name, value in plane.worker_env().items()
    }
    worker = SdkWorker(folder, urls | {"TIMING": json.dumps(timing or {})} | environ)
    try:
        plane.wait_for("take", 60, count=seen + 1)
        yield worker
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)  # the SDK's pings are another process
        worker.process.wait()


def main() -> None:
    """Be the worker."""
    logging.basicConfig(level="INFO", format="%(levelname)s %(name)s: %(message)s")
    concurrency = int(os.environ.get("CONCURRENCY", "1"))
    if "PLAIN" in os.environ:
        # Its own checks need a GPU's memory and a route to 8.8.8.8.
        os.environ |= runpod_sdk.OWN_CHECKS_ONLY
        import runpod

        does = generator if "YIELDS" in os.environ else handler
        config = {"handler": does, "concurrency_modifier": lambda _current: concurrency}
        runpod.serverless.start(config)
        return
    release = runpod_sdk.SUPPORTED
    runpod_sdk.start(
        handler,
        concurrency=concurrency,
        timing=TransportTiming(**json.loads(os.environ["TIMING"])),
        release=replace(release, version="0.0.0") if "OTHER_SDK" in os.environ else release,
    )


if __name__ == "__main__":
    main()
