"""The pause of the engine between two jobs, and how soon a cancelled job leaves it."""

from __future__ import annotations

import functools
import itertools
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import requests
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_files import safetensors
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import HANDLER, WorkerProcess, running_worker

from benchmarks.sides.workers import OFFICIAL, OURS, Worker, job_of, running
from benchmarks.suite.bench import Bench
from benchmarks.suite.figures import Curve, Figure, Goal, in_turns

TITLE = "The pause of the engine between two jobs that wait"
ABOUT = """\
A1111 v1.9.3 computes under a lock and encodes the answer's pictures after it has released it:
0.15 s for a megapixel on the CPU of a real one. A worker that sends the next job after the answer
of the last one leaves the GPU without work for that time. This worker sends the next job when the
last step of the running one has begun, so that it waits inside A1111. With `JOB_CONCURRENCY=1` it
takes that job from RunPod at this moment, with 2 it has it already.

The rival is the official worker (runpod-workers/worker-a1111) with the same RunPod SDK, which
takes one job after the other. The limit is 0. Both get a backlog of jobs of 1024 x 1024 from a
control plane on this machine. The engine is the tests' A1111. For each picture it computes 0.6 s
(4 steps, then the VAE), as SDXL Lightning does on an RTX 4090, and then encodes for 0.15 s; it
notes when it computes. The pause is the time from the end of one job's computing to the beginning
of the next one's. The share is the part of the time, from the first job's beginning to the last
one's end, in which the engine computes. The pause is 0 as long as a job's computing takes longer
than the encoding, transfer and delivery of the job before it.

In front of a real A1111 v1.9.3 on a CPU, with `JOB_CONCURRENCY=2`, the four pauses between five
jobs of two pictures of 512 x 512 were 35, 0.7, 0.7 and 0.4 ms. The model was random and its
pictures were encoded in 6 ms, so this does not show a long encoding.

For the cancelled jobs, a job with a LoRA of its own is cancelled at a random moment: while the
worker takes it, downloads the LoRA, or generates. Measured is the time until the engine computes
nothing.
"""
LATE = (
    "The next request comes after the end of the computing where the way to RunPod and back, and"
    " the next job's checks and models, take longer than the last step and the decoding."
)
STEP, DECODING, ENCODING = 0.125, 0.1, 0.15  # seconds for each picture, in 4 steps
JOBS, CANCELLED = {1: 5, 4: 4}, 8  # jobs of a backlog, by their pictures
LATEST = 2.5  # seconds until a job is cancelled
AT_LEAST_IDLE = 0.5  # seconds


def measure(bench: Bench) -> Iterator[Figure | Curve]:
    """The pause, the share by the time of encoding, and cancelled jobs."""
    with ExitStack() as stack:

        def start(name: str, folder: str, **settings: str) -> Worker:
            return stack.enter_context(running(name, bench.folder / folder, **settings))

        one, two = (start(OURS, number, JOB_CONCURRENCY=number) for number in ("1", "2"))
        other = start(OFFICIAL, "official")
        for pictures, (number, ours) in itertools.product(JOBS, (("1", one), ("2", two))):
            sides = [functools.partial(_pause, side, bench, pictures) for side in (ours, other)]
            found = in_turns(bench.rounds(2), *sides)
            count = f"{pictures} picture{'s' * (pictures > 1)}"
            name = f"pause between two jobs of {count}, JOB_CONCURRENCY={number}"
            yield Figure(name, "ms", *found, OFFICIAL, Goal(5.0, of="value"), LATE)
        yield _curve(bench, {f"{OURS}, 2 jobs": two, f"{OURS}, 1 job": one, OFFICIAL: other})
    yield _cancelled(bench)


def _pause(worker: Worker, bench: Bench, pictures: int) -> float:
    """Milliseconds between two jobs, as the median."""
    spans = _spans(worker, bench, pictures, ENCODING)
    gaps = [1000 * (after[0] - before[1]) for before, after in itertools.pairwise(spans)]
    return statistics.median(gaps)


def _curve(bench: Bench, sides: dict[str, Worker]) -> Curve:
    """The share of the time in which the engine computes."""
    lines: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for encoding in (0.0, 0.3) if bench.quick else (0.0, 0.15, 0.3):
        for name, worker in sides.items():
            spans = _spans(worker, bench, 1, encoding)
            share = sum(end - begin for begin, end in spans) / (spans[-1][1] - spans[0][0])
            lines[name].append((encoding, round(100 * share, 1)))
    return Curve(
        "Busy share of the engine by the time it encodes",
        "seconds of encoding for a picture that is computed in 0.6 s",
        "percent",
        {name: tuple(points) for name, points in lines.items()},
    )


def _spans(
    worker: Worker, bench: Bench, pictures: int, encoding: float
) -> list[tuple[float, float]]:
    """When the engine began and ended to compute each job of a backlog.

    `encoding` is the seconds of one picture.
    """
    faults = f"{worker.engine}/_fake/faults"
    requests.delete(faults, timeout=5).raise_for_status()
    slow = {"slow_steps": STEP * pictures, "slow_decoding": DECODING, "slow_encoding": encoding}
    for name, seconds in slow.items():
        fault = {"fault": name, "seconds": seconds, "times": -1}
        requests.post(faults, json=fault, timeout=5).raise_for_status()
    before = len(_log(worker))
    jobs = 2 if bench.quick else JOBS[pictures]
    job = job_of(pictures, 64 if bench.quick else 1024)
    queued = [worker.plane.submit(job | {"seed": seed}) for seed in range(jobs)]
    for one in queued:
        done = worker.plane.wait(one, 60)
        if done["status"] != "COMPLETED":
            raise SystemExit(f"a job failed: {str(done)[:500]}")
    worker.plane.forget()
    found = [row for row in _log(worker)[before:] if row["path"].endswith("txt2img")]
    if len(found) != jobs:
        raise SystemExit("a job was sent again")
    return sorted((row["began"], row["ended"]) for row in found)


def _log(worker: Worker) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = requests.get(f"{worker.engine}/_fake/log", timeout=5).json()
    return found


# Cancelled jobs -----------------------------------------------------------------------------------


def _cancelled(bench: Bench) -> Figure:
    """Seconds until the engine computes nothing after a job was cancelled."""
    moments = random.Random(1)  # noqa: S311 - no secret
    busy = []
    with (
        ModelHosts() as hosts,
        RunPodPlane() as plane,
        running_worker(bench.folder / "cancel", plane, handler=HANDLER, hosts=hosts) as worker,
    ):
        hosts.throttle(None, ttfb=1.0)
        worker.fault("slow_steps", seconds=0.1, times=-1)
        for number in range(2 if bench.quick else CANCELLED):
            data, name = safetensors(number=number), f"l{number}.safetensors"
            model = hosts.add_model(version_id=100 + number, data=data, name=name, kind="LORA")
            long = {"prompt": "a fox", "width": 64, "height": 64, "steps": 150}
            job = plane.submit(long | {"loras": [model.download_url]})
            time.sleep(moments.uniform(0, LATEST))
            plane.cancel(job)
            busy.append(_until_idle(worker))
            _check_next(worker, number)
    return Figure("engine busy after a job was cancelled", "s", tuple(busy))


def _until_idle(worker: WorkerProcess) -> float:
    began = idle_since = time.monotonic()
    while time.monotonic() - idle_since < AT_LEAST_IDLE:
        if not worker.engine_is_idle():
            idle_since = time.monotonic()
        time.sleep(0.01)
    return idle_since - began


def _check_next(worker: WorkerProcess, seed: int) -> None:
    """The next job must get its own picture."""
    job = {"prompt": "a fox", "width": 64, "height": 64, "steps": 1, "seed": seed}
    done = worker.run(job)
    if done["status"] != "COMPLETED" or done["output"]["parameters"]["seed"] != seed:
        raise SystemExit(f"the next job is wrong: {done}")
