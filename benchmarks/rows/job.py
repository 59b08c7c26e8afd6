"""What a warm job costs the worker's process: CPU time and memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from benchmarks.sides.workers import OFFICIAL, OURS, Worker, job_of, running
from benchmarks.suite.bench import Bench
from benchmarks.suite.figures import Curve, Figure, Goal, in_turns

TITLE = "A warm job: CPU time and memory"
ABOUT = """\
The rival is the official worker, runpod-workers/worker-a1111 (commit 022c309): its handler posts
the job to A1111 with `requests` and returns the parsed answer. It runs on the same release of the
RunPod SDK as this worker (1.12.0), without the SDK's log lines. Both workers get the same jobs from
a control plane on this machine, and the same pictures from an engine in another process: PNGs of
noise with 2.1 MB of base64 for 1024 x 1024, about as much as those of a real model.

Measured is the process that runs the handler: its CPU time from the job's start to 0.3 s after its
end, its resident memory while it waits for its first job, and its largest resident memory during
a job with 16.8 MB of pictures. Our process does more for it: it checks the job, proves the model
and the pictures, and reports progress.

Most of the rival's time goes into the pictures' text: parsed once, written as a Python value twice
(for log lines of the SDK that are not shown), and encoded once. Here the pictures are cut out of
the engine's answer and sent as they are; they are read once, to check that they are whole.
"""
JOBS, ROUNDS = 3, 5
LARGER = (
    "Of the rival's memory, 51 MB are the imports of the RunPod SDK. This worker leaves out 17 MB"
    " of them, and adds 24 MB for its own modules (a third of them are the types of all tasks'"
    " fields), 5 MB for pydantic, and 3 MB for Pillow."
)
CURVE = (1, 2, 4, 8)


def measure(bench: Bench) -> Iterator[Figure | Curve]:
    """CPU by number of pictures, and memory."""
    side = 64 if bench.quick else 1024
    with ExitStack() as stack:
        ours, other = (
            stack.enter_context(running(name, bench.folder / name.split()[0]))
            for name in (OURS, OFFICIAL)
        )
        rest = (ours.memory,), (other.memory,)
        for worker in (ours, other):
            worker.run(job_of(1, side))
        lines: dict[str, list[tuple[float, float]]] = {OURS: [], OFFICIAL: []}
        for pictures in CURVE[:2] if bench.quick else CURVE:
            figure = _cpu(bench, ours, other, pictures, side)
            lines[OURS].append((pictures, figure.our_value))
            lines[OFFICIAL].append((pictures, figure.other_value or 0.0))
            if figure.goal:
                yield figure
        yield _curve("CPU time of a warm job", "pictures of 1024 x 1024", "ms", lines)
        name = "memory before the first job"
        yield Figure(name, "MB", *rest, OFFICIAL, Goal(1.0), why_missed=LARGER)
        yield from _memory(bench, ours, other, side)


def _cpu(bench: Bench, ours: Worker, other: Worker, pictures: int, side: int) -> Figure:
    cpu = [
        functools.partial(worker.cpu_of, job_of(pictures, side), 1 if bench.quick else JOBS)
        for worker in (ours, other)
    ]
    has_goal = pictures in {1, 4}
    found = in_turns(bench.rounds(ROUNDS if has_goal else 2), *cpu)
    name = f"CPU of a warm job, {pictures} picture{'s' * (pictures > 1)} of 1024 x 1024"
    return Figure(name, "ms", *found, OFFICIAL, Goal(0.8) if has_goal else None)


def _memory(bench: Bench, ours: Worker, other: Worker, side: int) -> Iterator[Figure | Curve]:
    peaks: list[Callable[[], float]] = [
        functools.partial(worker.peak_of, job_of(CURVE[-1], side)) for worker in (ours, other)
    ]
    found = in_turns(bench.rounds(ROUNDS), *peaks)
    yield Figure("peak memory with a result of 16.8 MB", "MB", *found, OFFICIAL, Goal(1.2))
    lines: dict[str, list[tuple[float, float]]] = {OURS: [], OFFICIAL: []}
    for jobs in range(bench.rounds(8)):
        for name, worker in ((OURS, ours), (OFFICIAL, other)):
            worker.run(job_of(CURVE[-1], side))
            lines[name].append((jobs + 1, worker.memory))
    yield _curve("Memory after jobs of 16.8 MB", "jobs", "MB", lines)


def _curve(name: str, x: str, y: str, lines: dict[str, list[tuple[float, float]]]) -> Curve:
    return Curve(name, x, y, {side: tuple(points) for side, points in lines.items()})
