"""How long the engine is idle between two jobs of a backlog, and what becomes of results."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

from fakes.runpod_plane import RunPodPlane
from fakes.sdk_worker import running_sdk_worker

from benchmarks.sides.workers import OFFICIAL, OURS, Worker, job_of, running
from benchmarks.suite.bench import Bench
from benchmarks.suite.figures import Curve, Figure, Goal

TITLE = "Between two jobs"
ABOUT = """\
The rival is the official worker (see the row above) on the plain RunPod SDK 1.12.0. Jobs wait in a
queue on this machine; each keeps the engine busy for 0.6 s. The idle time is measured at the
engine: from the end of one answer to the arrival of the next POST, the median over the jobs of a
backlog. With `JOB_CONCURRENCY=1` this worker asks for the next job when the last step of the
running one has begun. On a real network the way to RunPod and back is longer; `JOB_CONCURRENCY=2`
hides all of it: the next job is there already. The plain SDK looks for a free slot once a second.

Two more figures: jobs whose caller gets neither a result nor a reason when its post meets three
broken connections, three 429, three 502, a 400 or a 413 (the plain SDK gives up after three
attempts); and the time from SIGTERM to the end of an idle worker, whose open poll RunPod holds for
20 s.
"""
ENGINE_SECONDS = 0.6
STEPS = 4
FAULTS: list[dict[str, object]] = [
    {"drop": True, "times": 3},
    {"status": 429, "times": 3},
    {"status": 502, "times": 3},
    {"status": 400},
    {"status": 413},
]
WAIT, HOLD = 120.0, 20.0
ROUND_TRIP = (
    "The next job is asked for when the last step of the running one has begun. The time has what"
    " is left of the way to RunPod and back, and of the next job's checks and models."
)


def measure(bench: Bench) -> Iterator[Figure | Curve]:
    """Gaps for small and large results, lost results, and the end."""
    sizes = (
        (1, 64, "1 picture of 64 x 64"),
        (1, 1024, "1 picture of 1024 x 1024"),
        (4, 1024, "4 pictures of 1024 x 1024"),
    )
    lines: dict[str, list[tuple[float, float]]] = {}
    for pictures, side, name in sizes[:1] if bench.quick else sizes:
        figures = tuple(_idle(bench, pictures, side, name))
        yield from figures
        sides = [(f"{OURS}, JOB_CONCURRENCY={f.name[-1]}", f.our_value) for f in figures]
        for line, idle in (*sides, (OFFICIAL, figures[0].other_value or 0.0)):
            lines.setdefault(line, []).append((pictures * side * side / 2**20, idle))
    points = {line: tuple(found) for line, found in lines.items()}
    yield Curve("Idle engine by size of the result", "millions of pixels", "ms", points)
    none, second, plain = Goal(0, "value"), Goal(1, "value"), "the plain SDK"
    ours, other = (_lost(bench.folder / name, bench.rounds(4), how) for name, how in _SIDES)
    yield Figure("results lost by failing posts", "%", ours, other, plain, none)
    ours, other = (_end(bench.folder / f"end-{name}", how) for name, how in _SIDES)
    yield Figure("from SIGTERM to the end, idle", "s", ours, other, plain, second)


_SIDES: tuple[tuple[str, dict[str, str]], ...] = (("ours", {}), ("plain", {"PLAIN": "1"}))


def _idle(bench: Bench, pictures: int, side: int, name: str) -> Iterator[Figure]:
    """The idle time with one job and with two jobs at once, and the rival's, in turns."""
    rival = (OFFICIAL, "")
    with ExitStack() as stack:
        workers: dict[tuple[str, str], Worker] = {}
        for worker_name, concurrency in (rival, (OURS, "1"), (OURS, "2")):
            folder = bench.folder / f"{pictures}-{side}-{worker_name.split()[0]}-{concurrency}"
            settings = {"JOB_CONCURRENCY": concurrency} if concurrency else {}
            worker = stack.enter_context(running(worker_name, folder, **settings))
            worker.run(job_of(pictures, side))
            worker.slow(ENGINE_SECONDS / STEPS)
            workers[worker_name, concurrency] = worker
        found: dict[tuple[str, str], list[float]] = {key: [] for key in workers}
        for _ in range(bench.rounds(3)):
            for key, worker in workers.items():
                found[key].append(_backlog(worker, 3 if bench.quick else 4, pictures, side))
    for concurrency in ("1", "2"):
        title = f"idle engine between jobs of {name}, JOB_CONCURRENCY={concurrency}"
        ours, theirs = tuple(found[OURS, concurrency]), tuple(found[rival])
        yield Figure(title, "ms", ours, theirs, OFFICIAL, Goal(5, "value"), ROUND_TRIP)


def _backlog(worker: Worker, jobs: int, pictures: int, side: int) -> float:
    """Milliseconds between the jobs of one backlog, as the median."""
    before = len(worker.posts())
    queued = [worker.plane.submit(job_of(pictures, side), via="runsync") for _ in range(jobs)]
    for job in queued:
        worker.plane.wait(job, WAIT)
    worker.plane.forget()
    posts = sorted(worker.posts()[before:])
    idle = [max(0.0, began - ended) for (_, ended), (began, _) in pairwise(posts)]
    return 1000 * statistics.median(idle)


def _lost(folder: Path, rounds: int, how: dict[str, str]) -> tuple[float]:
    """Percent of the jobs whose caller gets neither a result nor a reason."""
    timing = {"first_post_pause": 0.05, "longest_post_pause": 0.2}
    with (
        RunPodPlane(hold=HOLD) as plane,
        running_sdk_worker(folder, plane, timing=timing, CONCURRENCY="8", **how),
    ):
        ids = [str(number) for number in range(rounds * len(FAULTS))]
        for job in ids:
            plane.fault("job-done", job=job, **FAULTS[int(job) % len(FAULTS)])
            plane.submit({"echo": job}, id=job, policy={"executionTimeout": 10_000})
        ended = [plane.wait(job, WAIT)["status"] for job in ids]
    return (100 * ended.count("TIMED_OUT") / len(ended),)


def _end(folder: Path, how: dict[str, str]) -> tuple[float]:
    """Seconds from SIGTERM to the end of a worker that waits for a job."""
    with (
        RunPodPlane(hold=HOLD) as plane,
        running_sdk_worker(folder, plane, **how) as worker,
    ):
        time.sleep(0.5)
        sent = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        worker.process.wait(2 * HOLD + WAIT)
        return (time.monotonic() - sent,)
