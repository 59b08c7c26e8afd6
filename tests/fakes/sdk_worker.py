"""A worker without an engine: the real SDK, our transport or none, and a handler that does little.

As a program it is the worker; `running_sdk_worker` starts it for a test or a benchmark.

What a job's input may hold: `seconds` to work, `size` of the result in bytes, `fail` for an
exception, `cancel` for a CancelledError of its own, `hang` to block the event loop,
`not_json` for bytes in the result, `retire` for one with refresh_worker, `progress` for that many
reports before it.
"""

import asyncio
import functools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # as a program

import runpod_sdk  # noqa: E402
from fakes.hosts.slow_line import SlowLine  # noqa: E402
from fakes.runpod_plane import RunPodPlane  # noqa: E402
from worker.runpod import watchdog  # noqa: E402

# What can happen to the post of a result, for RunPodPlane.fault.
FAULTS: list[dict[str, Any]] = [
    {"drop": True, "times": 3},
    {"status": 429, "times": 3},
    {"status": 502, "times": 3},
    {"status": 400},
    {"status": 413},
]


async def handler(job: dict[str, Any]) -> dict[str, Any]:
    """Do what the input says, and note in the file TIMES when the job began and ended."""
    wanted = job["input"]
    began = time.monotonic()
    if wanted.get("hang"):
        time.sleep(wanted["hang"])  # noqa: ASYNC251 - that is the fault
    try:
        await asyncio.sleep(wanted.get("seconds", 0))
    finally:
        _note(job["id"], began)
    if wanted.get("fail"):
        raise RuntimeError("broken")
    if wanted.get("cancel"):
        raise asyncio.CancelledError
    for number in range(wanted.get("progress", 0)):
        await runpod_sdk.post_progress(job, number)
    return {
        "echo": wanted.get("echo"),
        "filling": "x" * wanted.get("size", 0),
        "not_json": b"" if wanted.get("not_json") else "",
        "refresh_worker": wanted.get("retire", False),
    }


def _note(job_id: str, began: float) -> None:
    with Path(os.environ["TIMES"]).open("a") as times:
        times.write(f"{job_id} {began} {time.monotonic()}\n")


def unfit() -> None:
    """A check that fails."""
    raise RuntimeError("this worker is unfit")


class SdkWorker:
    """The running program."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.times_file = folder / "times"
        self.log_file = folder / "sdk-worker.log"
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                env={
                    "PATH": os.environ["PATH"],
                    "RUNPOD_LOG_LEVEL": "WARN",
                    "TIMES": str(self.times_file),
                    **environ,
                },
                stdout=log,
                stderr=log,
                start_new_session=True,  # as start.sh does
            )

    def log(self) -> str:
        """Everything that it wrote."""
        return self.log_file.read_text()

    def times(self) -> list[tuple[str, float, float]]:
        """Job, begin and end of every run of the handler, in order of their ends."""
        if not self.times_file.exists():
            return []
        rows = (line.split() for line in self.times_file.read_text().splitlines())
        return [(job, float(began), float(ended)) for job, began, ended in rows]


@contextmanager
def running_sdk_worker(
    folder: Path,
    plane: RunPodPlane,
    *,
    wait: bool = True,
    line: SlowLine | None = None,
    **environ: str,
) -> Iterator[SdkWorker]:
    """Start one and wait until it takes jobs; it is killed at the end.

    `PLAIN="1"` leaves our transport out, `OTHER_SDK="1"` lets the SDK look like another release,
    `UNFIT="1"` adds a check that fails, `CONCURRENCY` is how many jobs it runs at once, `WATCHDOG`
    the patience of the watchdog in seconds. `line` lies between it and the plane; `wait=False`
    does not wait.
    """
    seen = len(plane.events("take"))
    environ = plane.worker_env() | environ
    if line:
        pairs = environ.items()
        environ = {
            name: value.replace(f":{plane.port}/", f":{line.port}/") for name, value in pairs
        }
    worker = SdkWorker(folder, environ)
    try:
        if wait:
            plane.wait_for("take", 60, count=seen + 1)
        yield worker
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)  # the SDK pings from a process of its own
        worker.process.wait()


def main() -> None:
    """Be the worker."""
    logging.basicConfig(level="INFO", format="%(levelname)s %(name)s: %(message)s")
    concurrency = int(os.environ.get("CONCURRENCY", "1"))
    if "OTHER_SDK" in os.environ:
        runpod_sdk.VERSION = "0.0.0"
    if "WATCHDOG" in os.environ:
        patience = float(os.environ["WATCHDOG"])
        runpod_sdk.start_watchdog = functools.partial(watchdog.start_watchdog, patience=patience)
    if "PLAIN" in os.environ:
        # Its checks want a GPU's memory and a way to 8.8.8.8.
        os.environ |= {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true"}
        import runpod

        config = {"handler": handler, "concurrency_modifier": lambda _current: concurrency}
        runpod.serverless.start(config)
    else:
        checks = [unfit] if "UNFIT" in os.environ else []
        runpod_sdk.start(handler, concurrency=concurrency, checks=checks)


if __name__ == "__main__":
    main()
